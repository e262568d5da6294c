"""LowerTiledProducts, TVM's fusion and BuildFusedKernels together: one launch a layer.

Between the passes stands a block with an opaque value, which is nobody's interface; so these tests
give Before in TVMScript and assert on what is left: the kernels that ``main`` calls, in order, and
the numbers that they give in the emulator.
"""

import json

import numpy as np
import pytest
import torch
import tvm
from tvm import relax
from tvm import tirx as tir
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from tbn_tvm import op as tbn
from tbn_tvm import pipeline
from tbn_tvm.relay_passes.build_fused_kernels import rewritten
from tbn_tvm.schedules.kernel import KERNEL_ATTR
from tbn_tvm.testing import cuda_emulator
from tbn_tvm.testing.emulated_model import EmulatedModel
from tbn_tvm.tiling import TiledTensor

RNG = np.random.default_rng(0)
SM_80 = {"kind": "cuda", "arch": "sm_80"}


def tiled(shape, p):
    signs = RNG.choice([-1, 1], int(np.prod(shape)) // p)
    return TiledTensor.from_signs(signs, RNG.uniform(0.02, 0.2, p), shape)


DENSE = tiled((128, 64), 4)
CONV = tiled((16, 8, 3, 3), 2)
BIAS = RNG.normal(size=128).astype("float16")
CONV_BIAS = RNG.normal(size=(1, 16, 1, 1)).astype("float16")
SCALE = RNG.uniform(0.5, 2, 128).astype("float16")


def dense(x, dtype="float16", bias=BIAS):
    """A layer of 64 inputs and 128 outputs."""
    extra = [] if bias is None else [R.const(bias.astype(dtype))]
    return tbn.tiled_dense(
        x, R.const(DENSE.tile), R.const(DENSE.alphas), *extra, out_features=128, p=4
    )


def convolution(x):
    return tbn.tiled_conv2d(
        x,
        R.const(CONV.tile),
        R.const(CONV.alphas),
        out_channels=16,
        kernel_size=[3, 3],
        padding=[1, 1, 1, 1],
        p=2,
    )


def dense_outputs(x, bias=BIAS):
    """What :func:`dense` is to give, in float64."""
    y = torch.from_numpy(x.astype("float64") @ DENSE.expand(np.float64).T)
    return y if bias is None else y + torch.from_numpy(bias.astype("float64"))


def layer(follow, shape, dtype, bias=BIAS):
    """A module of one layer and what follows it."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, dtype))
    with builder.function("main", [x]):
        with builder.dataflow():
            gv = builder.emit_output(follow(builder.emit(dense(x, dtype, bias))))
        builder.emit_func_output(gv)
    return builder.get()


def random(*shape, dtype="float16"):
    return RNG.normal(size=shape).astype(dtype)


def called(mod):
    """The kernels that ``main`` calls: their names, or None for those that are TVM's own."""
    target = tvm.target.Target(SM_80, host="llvm")
    lowered = pipeline.run(mod, pipeline.host_phases(target), target)
    names = []
    for block in lowered["main"].body.blocks:
        for binding in block.bindings:
            call = binding.value
            if isinstance(call, relax.Call) and call.op == tvm.ir.Op.get("relax.call_tir"):
                note = lowered[call.args[0]].attrs.get(KERNEL_ATTR)
                names.append(json.loads(note)["kernel"] if note else None)
    return names


def check(mod, inputs, expected, tolerance=2e-3):
    """Compare numbers with the emulator's."""
    if cuda_emulator.compiler() is None:
        return
    made = EmulatedModel(mod, SM_80)(*inputs)
    expected = np.asarray(expected)
    assert made.shape == expected.shape
    error = np.abs(made.astype("float64") - expected)
    assert (error <= tolerance * (np.abs(expected) + 1)).all(), error.max()


def test_an_activation_and_a_residual_are_part_of_the_kernel():
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor(("b", 5, 64), "float16"), r: R.Tensor(("b", 5, 128), "float16")
        ) -> R.Tensor(("b", 5, 128), "float16"):
            with R.dataflow():
                y = dense(x)
                z = R.nn.gelu(y)
                gv = R.add(r, z)
                R.output(gv)
            return gv

    assert called(Before) == ["dense_mma"]
    for batch in (1, 3):  # 5 samples, 15 samples
        x, r = random(batch, 5, 64), random(batch, 5, 128)
        check(Before, [x, r], torch.nn.functional.gelu(dense_outputs(x)).numpy() + r)


def test_the_kernel_says_what_made_it():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 64), "float16")) -> R.Tensor((2, 128), "float16"):
            with R.dataflow():
                gv = dense(x)
                R.output(gv)
            return gv

    target = tvm.target.Target(SM_80, host="llvm")
    lowered = pipeline.run(Before, pipeline.host_phases(target), target)
    (note,) = [
        json.loads(func.attrs[KERNEL_ATTR])
        for _, func in lowered.functions_items()
        if isinstance(func, tir.PrimFunc)
    ]
    assert note["kernel"] == "dense_mma" and note["sources"] == ["rules"]
    assert len(note["configs"]) == 1 and note["configs"][0]["tiles"] == 1


def test_a_bias_behind_the_product_and_relu():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("b", 64), "float32")) -> R.Tensor(("b", 128), "float32"):
            with R.dataflow():
                y = dense(x, "float32", bias=None)
                z = R.add(y, R.const(BIAS.astype("float32")))
                gv = R.nn.relu(z)
                R.output(gv)
            return gv

    assert called(Before) == ["dense_simt"]
    x = random(3, 64, dtype="float32")
    check(Before, [x], dense_outputs(x).relu(), 1e-5)


def test_a_convolution_with_bias_residual_and_relu():
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor(("b", 8, 9, 11), "float16"), r: R.Tensor(("b", 16, 9, 11), "float16")
        ) -> R.Tensor(("b", 16, 9, 11), "float16"):
            with R.dataflow():
                y = convolution(x)
                z = R.add(y, R.const(CONV_BIAS))
                w = R.add(z, r)
                gv = R.nn.relu(w)
                R.output(gv)
            return gv

    assert called(Before) == ["conv_mma"]
    x, r = random(2, 8, 9, 11), random(2, 16, 9, 11)
    y = torch.nn.functional.conv2d(
        torch.from_numpy(x.astype("float64")),
        torch.from_numpy(CONV.expand(np.float64)),
        torch.from_numpy(CONV_BIAS.reshape(-1).astype("float64")),
        padding=1,
    )
    check(Before, [x, r], (y + torch.from_numpy(r)).relu())


def test_operands_of_fewer_axes_are_broadcast():
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((3, 5, 64), "float16"),
            each_row: R.Tensor((3, 5, 1), "float16"),
            each_place: R.Tensor((5, 128), "float16"),
        ) -> R.Tensor((3, 5, 128), "float16"):
            with R.dataflow():
                y = dense(x)
                z = R.multiply(R.nn.relu(y), R.const(SCALE))
                w = R.multiply(z, each_row)
                gv = R.add(w, each_place)
                R.output(gv)
            return gv

    assert called(Before) == ["dense_mma"]
    x, each_row, each_place = random(3, 5, 64), random(3, 5, 1), random(5, 128)
    expected = dense_outputs(x).relu().numpy() * SCALE * each_row + each_place
    check(Before, [x, each_row, each_place], expected, 5e-3)


def test_a_value_with_two_readers_is_computed_once():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((9, 64), "float16")) -> R.Tensor((9, 128), "float16"):
            with R.dataflow():
                y = dense(x)
                z = R.sigmoid(y)
                gv = R.add(z, y)
                R.output(gv)
            return gv

    assert called(Before) == ["dense_mma"]
    x = random(9, 64)
    y = dense_outputs(x)
    check(Before, [x], y.sigmoid() + y)


ACTIVATIONS = {
    "silu": (R.nn.silu, torch.nn.functional.silu),
    "clip": (lambda y: R.clip(y, -0.5, 0.75), lambda y: y.clamp(-0.5, 0.75)),
    "leaky_relu": (
        lambda y: R.nn.leakyrelu(y, 0.125),
        lambda y: torch.nn.functional.leaky_relu(y, 0.125),
    ),
    "tanh, twice": (lambda y: R.tanh(R.tanh(y)), lambda y: y.tanh().tanh()),
    "where": (
        lambda y: R.where(R.greater(y, R.const(0.25, "float16")), y, R.negative(y)),
        lambda y: torch.where(y > 0.25, y, -y),
    ),
    "bits": (
        lambda y: R.bitwise_xor(R.astype(y, "int32"), R.const(3, "int32")),
        lambda y: y.int() ^ 3,
    ),
    "float32": (lambda y: R.astype(y, "float32"), lambda y: y),
    "float32, and more": (
        lambda y: R.exp(R.multiply(R.astype(y, "float32"), R.const(0.5, "float32"))),
        lambda y: (y * 0.5).exp(),
    ),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_elementwise_chains(name):
    activation, expected = ACTIVATIONS[name]
    mod = layer(activation, (2, 64), "float16")
    assert called(mod) == ["dense_mma"]
    values = random(2, 64)
    # Around a threshold a rounded value may fall on the other side.
    check(mod, [values], expected(dense_outputs(values).half().double()), 4e-3)


def test_a_sum_over_outputs_is_a_kernel_of_its_own():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((3, 64), "float16")) -> R.Tensor((3,), "float32"):
            with R.dataflow():
                y = dense(x)
                z = R.astype(R.nn.relu(y), "float32")
                gv = R.sum(z, axis=[-1])
                R.output(gv)
            return gv

    assert called(Before) == ["dense_mma", None]
    x = random(3, 64)
    check(Before, [x], dense_outputs(x).relu().sum(-1))


def test_a_transposition_is_a_kernel_of_its_own():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((3, 64), "float16")) -> R.Tensor((128, 3), "float16"):
            with R.dataflow():
                y = dense(x)
                gv = R.permute_dims(y)
                R.output(gv)
            return gv

    assert called(Before) == ["dense_mma", None]
    x = random(3, 64)
    check(Before, [x], dense_outputs(x).T)


def test_layers_in_a_row_are_one_launch_each():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("b", 64), "float32")) -> R.Tensor(("b", 128), "float32"):
            with R.dataflow():
                y = R.nn.relu(dense(x, "float32"))
                half = R.strided_slice(y, axes=[1], begin=[0], end=[64])
                gv = R.nn.relu(dense(half, "float32"))
                R.output(gv)
            return gv

    assert called(Before) == ["dense_simt", None, "dense_simt"]
    x = random(2, 64, dtype="float32")
    y = dense_outputs(x).relu().numpy()
    check(Before, [x], dense_outputs(y[:, :64]).relu(), 1e-5)


OTHER_SHAPES = {
    # Each reads where it writes, or broadcasts, and yet writes fewer or more elements.
    "rows from the start": (lambda y: R.strided_slice(y, [0], [0], [2]), lambda y: y[:2]),
    "columns from the start": (lambda y: R.strided_slice(y, [1], [0], [5]), lambda y: y[:, :5]),
    "padding": (
        lambda y: R.nn.pad(y, [0, 0, 0, 7]),
        lambda y: torch.nn.functional.pad(y, (0, 7)),
    ),
    "a larger operand": (
        lambda y: R.add(y, R.const(np.ones((2, 4, 128), "float32"))),
        lambda y: (y + 1).expand(2, 4, 128),
    ),
}


@pytest.mark.parametrize("between", [False, True], ids=["", "behind an activation"])
@pytest.mark.parametrize("name", OTHER_SHAPES)
def test_what_has_another_shape_is_a_kernel_of_its_own(name, between):
    change, expected = OTHER_SHAPES[name]
    mod = layer(
        lambda y: change(relax.op.nn.relu(y) if between else y), (4, 64), "float32", bias=None
    )
    assert called(mod) == ["dense_simt", None]
    x = random(4, 64, dtype="float32")
    y = dense_outputs(x, bias=None)
    check(mod, [x], expected(y.relu() if between else y), 1e-5)


def test_values_that_depend_on_their_place():
    """TVM's indices have 64 bits, the kernels' 32."""
    mod = layer(lambda y: R.tril(y, 3), (5, 64), "float16")
    assert called(mod) == ["dense_mma"]
    x = random(5, 64)
    check(mod, [x], dense_outputs(x).tril(3))


def test_a_tile_that_is_no_constant_gets_the_reference_kernel():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 64), "float32"), tile: R.Tensor((256,), "uint8")) -> R.Tensor(
            (2, 128), "float32"
        ):
            with R.dataflow():
                y = tbn.tiled_dense(x, tile, R.const(DENSE.alphas), out_features=128, p=4)
                gv = R.nn.relu(y)
                R.output(gv)
            return gv

    assert set(called(Before)) == {None}
    x = random(2, 64, dtype="float32")
    check(Before, [x, DENSE.tile], dense_outputs(x, bias=None).relu(), 1e-5)


@pytest.mark.parametrize("shape", [(64,), (1, 64), (2, 1, 3, 64)])
def test_any_number_of_leading_axes(shape):
    mod = layer(relax.op.nn.relu, shape, "float16")
    assert called(mod) == ["dense_mma"]
    values = random(*shape)
    check(mod, [values], dense_outputs(values).relu())


def test_fusion_without_the_corrected_patterns_is_refused():
    mod = layer(lambda y: R.strided_slice(y, [0], [0], [2]), (4, 64), "float32")
    target = tvm.target.Target(SM_80, host="llvm")
    passes = [p for p in pipeline.lower_gpu(target) if p.info.name != "FuseSameShapes"]
    with pytest.raises(ValueError, match="run FuseSameShapes before FuseOps"):
        pipeline.run(mod, [("3_lower", passes)], target)


def test_functions_without_a_stand_in_are_left_alone():
    @I.ir_module
    class Before:
        @T.prim_func(private=True, s_tir=True)
        def double(a: T.Buffer((4,), "float32"), b: T.Buffer((4,), "float32")):
            for i in range(4):
                with T.sblock("b"):
                    vi = T.axis.spatial(4, i)
                    b[vi] = a[vi] + a[vi]

        @R.function
        def main(x: R.Tensor((4,), "float32")) -> R.Tensor((4,), "float32"):
            cls = Before
            with R.dataflow():
                gv = R.call_tir(cls.double, (x,), R.Tensor((4,), "float32"))
                R.output(gv)
            return gv

    from tbn_tvm.relay_passes import BuildFusedKernels

    after = BuildFusedKernels(tvm.target.Target(SM_80, host="llvm"))(Before)
    tvm.ir.assert_structural_equal(after, Before)


def test_an_expression_is_rebuilt_with_parts_replaced():
    x, y = tir.Var("x", "float32"), tir.Var("y", "float32")
    expr = tir.Select(x > tir.const(0.0, "float32"), tir.exp(x) * x, -x)
    after = rewritten(expr, lambda part: y if part.same_as(x) else None)
    expected = tir.Select(y > tir.const(0.0, "float32"), tir.exp(y) * y, -y)
    tvm.ir.assert_structural_equal(after, expected)
    tvm.ir.assert_structural_equal(rewritten(expr, lambda _: None), expr)


def test_an_expression_that_no_elementwise_block_has_is_refused():
    with pytest.raises(ValueError, match="stores Ramp"):
        rewritten(tir.Ramp(tir.const(0, "int32"), tir.const(1, "int32"), 4), lambda _: None)
