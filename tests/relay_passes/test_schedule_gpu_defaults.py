"""Every function ends bound to threads, and computes what it did."""

import numpy as np
import pytest
import tvm
from tvm import relax, te
from tvm import tirx as tir
from tvm.script import ir as I
from tvm.script import tirx as T

from tbn_tvm.relay_passes import ScheduleGpuDefaults
from tbn_tvm.relay_passes.schedule_gpu_defaults import is_thread_bound
from tbn_tvm.schedules import reference
from tbn_tvm.testing import cuda_emulator
from tbn_tvm.tiling import Geometry

TARGET = tvm.target.Target({"kind": "cuda", "arch": "sm_80"}, host={"kind": "llvm"})
SCHEDULED = "tirx.is_scheduled"

OPERATORS = {
    "add": lambda x: relax.op.add(x, x),
    "argmax": lambda x: relax.op.argmax(x, axis=1),
    "concat": lambda x: relax.op.concat([x, x], axis=1),
    "matmul": lambda x: relax.op.matmul(x, relax.op.permute_dims(x)),
    "max": lambda x: relax.op.max(x, axis=1),
    "mean": lambda x: relax.op.mean(x),
    "scatter": lambda x: relax.op.scatter_elements(
        x, relax.const(np.zeros((1, 3), np.int64)), relax.const(np.ones((1, 3), np.float32))
    ),
    "softmax": lambda x: relax.op.nn.softmax(x),
    "split": lambda x: relax.op.split(x, 2, axis=1),
    "transpose": lambda x: relax.op.permute_dims(x),
    "variance": lambda x: relax.op.variance(x, axis=1),
}


def legalised(operator, rows) -> tvm.IRModule:
    """One operator over ``(rows, 40)``."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([rows, 40], "float32"))
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit(builder.normalize(operator(x))))
    with TARGET:  # which some operators are written for
        return relax.transform.LegalizeOps()(builder.get())


def kernels(mod: tvm.IRModule) -> dict:
    return {
        name.name_hint: func
        for name, func in mod.functions_items()
        if isinstance(func, tir.PrimFunc)
    }


def scheduled(mod: tvm.IRModule) -> tvm.IRModule:
    with TARGET:
        return ScheduleGpuDefaults(TARGET)(mod)


@pytest.mark.parametrize("rows", [6, tir.Var("rows", "int64")], ids=["static", "free"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_function_ends_bound_and_marked(operator, rows):
    mod = scheduled(legalised(OPERATORS[operator], rows))
    assert kernels(mod)
    for name, func in kernels(mod).items():
        assert is_thread_bound(func), name
        assert func.attrs[SCHEDULED]


@pytest.mark.skipif(cuda_emulator.compiler() is None, reason="needs g++")
@pytest.mark.parametrize(
    ("operator", "numpy"),
    [
        ("softmax", lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True)),
        ("transpose", np.transpose),
    ],
)
def test_what_rules_schedule_computes_the_same(operator, numpy):
    (func,) = kernels(scheduled(legalised(OPERATORS[operator], 6))).values()
    x = np.random.default_rng(0).standard_normal((6, 40)).astype(np.float32)
    expected = numpy(x)
    y = np.empty(expected.shape, np.float32)
    cuda_emulator.run(func, [x, y])
    np.testing.assert_allclose(y, expected, rtol=1e-5)


@pytest.mark.skipif(cuda_emulator.compiler() is None, reason="needs g++")
def test_a_reference_kernel_runs_in_two_launches():
    """dlight's rules fail on bit-packed weights; the default schedule does not."""
    geometry = Geometry(12, 10, 30)
    product = reference.Product(geometry, 4)
    batch = tir.Var("batch", "int64")
    x = te.placeholder((batch, 10), "float32", name="x")
    tile = te.placeholder((4,), "uint8", name="tile")
    alpha = te.placeholder((4,), "float32", name="alpha")
    y = reference.tiled_dense(x, tile, alpha, None, product)
    mod = tvm.IRModule({"main": te.create_prim_func([x, tile, alpha, y])})
    (func,) = kernels(scheduled(mod)).values()

    random = np.random.default_rng(0)
    rows = random.standard_normal((5, 10)).astype(np.float32)
    bits = random.integers(0, 256, 4, dtype=np.uint8)
    alphas = random.random(4, dtype=np.float32)
    signs = 2.0 * np.unpackbits(bits, bitorder="little")[:30] - 1
    weight = (alphas[:, None] * signs).reshape(12, 10)
    got = np.empty((5, 12), np.float32)
    launches = cuda_emulator.run(func, [rows, bits, alphas, got])
    assert len(launches) == 2
    np.testing.assert_allclose(got, rows @ weight.T, rtol=1e-4, atol=1e-5)


def test_what_is_scheduled_stays_as_it_is():
    @I.ir_module
    class Before:
        @T.prim_func(s_tir=True)
        def ours(x: T.Buffer((8,), "float32"), y: T.Buffer((8,), "float32")):
            T.func_attr({"tbn.scheduled": True})
            for i in range(8):
                with T.sblock("y"):
                    v = T.axis.spatial(8, i)
                    y[v] = x[v]

        @T.prim_func(s_tir=True)
        def bound(x: T.Buffer((8,), "float32"), y: T.Buffer((8,), "float32")):
            for i in T.thread_binding(8, thread="threadIdx.x"):
                with T.sblock("y"):
                    v = T.axis.spatial(8, i)
                    y[v] = x[v]

    made = scheduled(Before)
    for name, func in kernels(Before).items():
        tvm.ir.assert_structural_equal(made[name], func.with_attr(SCHEDULED, True))


def test_what_cannot_be_bound_is_refused_by_name():
    @I.ir_module
    class Before:
        @T.prim_func(s_tir=True)
        def no_blocks(x: T.Buffer((8,), "float32")):
            for i in range(8):
                x[i] = T.float32(0)

    with pytest.raises(ValueError, match="'no_blocks' cannot be scheduled for cuda"):
        scheduled(Before)
