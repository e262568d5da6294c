"""ScheduleDefaults, LowerTiledProducts, BindBatch and lift_constants: what reaches the targets."""

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from tbn_tvm import op as tbn
from tbn_tvm.relay_passes import BindBatch, LowerTiledProducts, ScheduleDefaults
from tbn_tvm.relay_passes.lift_constants import lift_constants
from tbn_tvm.schedules.cortex_m import lookup_dense
from tbn_tvm.tiling import TiledTensor

RNG = np.random.default_rng(0)
WEIGHT = TiledTensor.from_signs(RNG.choice([-1, 1], 4 * 40), [0.5, 0.25, 2.0], (12, 40))


def test_elementwise_stages_are_inlined_and_reductions_split_from_their_start():
    @I.ir_module
    class Before:
        @T.prim_func(s_tir=True)
        def main(
            x: T.Buffer((4, 8), "float32"),
            y: T.Buffer((4,), "float32"),
        ):
            total = T.sblock_alloc_buffer((4,))
            scaled = T.sblock_alloc_buffer((4,))
            for i, k in T.grid(4, 8):
                with T.sblock("total"):
                    vi, vk = T.axis.remap("SR", [i, k])
                    with T.init():
                        total[vi] = T.float32(0)
                    total[vi] = total[vi] + x[vi, vk]
            for i in range(4):
                with T.sblock("scaled"):
                    vi = T.axis.spatial(4, i)
                    scaled[vi] = total[vi] * T.float32(2)
            for i in range(4):
                with T.sblock("relu"):
                    vi = T.axis.spatial(4, i)
                    y[vi] = T.max(scaled[vi], T.float32(0))

    @I.ir_module
    class Expected:
        @T.prim_func(s_tir=True)
        def main(
            x: T.Buffer((4, 8), "float32"),
            y: T.Buffer((4,), "float32"),
        ):
            total = T.sblock_alloc_buffer((4,))
            for i in range(4):
                with T.sblock("total_init"):
                    vi = T.axis.spatial(4, i)
                    T.reads()
                    T.writes(total[vi])
                    total[vi] = T.float32(0)
                for k in range(8):
                    with T.sblock("total_update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        T.reads(total[vi], x[vi, vk])
                        T.writes(total[vi])
                        total[vi] = total[vi] + x[vi, vk]
            for i in range(4):
                with T.sblock("relu"):
                    vi = T.axis.spatial(4, i)
                    T.reads(total[vi])
                    T.writes(y[vi])
                    y[vi] = T.max(total[vi] * T.float32(2), T.float32(0))

    tvm.ir.assert_structural_equal(ScheduleDefaults()(Before), Expected)


def test_a_dense_product_with_enough_unique_rows_gets_the_lookup_kernel_and_its_layout():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 40), "float32")) -> R.Tensor((1, 12), "float32"):
            with R.dataflow():
                gv = tbn.tiled_dense(
                    x, R.const(WEIGHT.tile), R.const(WEIGHT.alphas), out_features=12, p=3
                )
                R.output(gv)
            return gv

    after = LowerTiledProducts(tvm.target.Target({"kind": "c"}))(Before)
    product, scatter = (b.value for b in after["main"].body.blocks[0].bindings)
    assert product.args[0].name_hint == "lookup_dense"
    (words,) = product.args[1].fields[1:]
    assert words.value.numpy().shape == (2, 4)
    assert scatter.args[0].name_hint == "tiled_dense_scatter"


@pytest.mark.parametrize(("rows", "columns"), [(3, 8), (4, 32), (10, 128), (5, 37), (32, 784)])
def test_column_words_hold_every_sign_in_its_place(rows, columns):
    signs = RNG.choice([-1, 1], rows * columns)
    weight = TiledTensor.from_signs(signs, [1.0], (rows, columns))
    words = lookup_dense.column_words(weight.signs().reshape(rows, columns) > 0)
    for row in range(rows):
        for column in range(columns):
            bit = words[column // 32, row] >> (column % 32) & 1
            assert bit == (signs[row * columns + column] > 0)
    assert words.shape == (-(-columns // 32), rows)


def test_binding_the_batch_fixes_every_symbolic_extent():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("n", 4), "float32")) -> R.Tensor(("n", 4), "float32"):
            n = T.int64()
            with R.dataflow():
                gv: R.Tensor((n, 4), "float32") = R.nn.relu(x)
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((1, 4), "float32")) -> R.Tensor((1, 4), "float32"):
            with R.dataflow():
                gv: R.Tensor((1, 4), "float32") = R.nn.relu(x)
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(BindBatch(1)(Before), Expected)
    tvm.ir.assert_structural_equal(BindBatch(1)(Expected), Expected)


def test_kernels_that_came_with_the_model_get_its_sizes():
    @I.ir_module
    class Before:
        @T.prim_func(private=True, s_tir=True)
        def double(a: T.handle, b: T.handle):
            n = T.int64()
            x = T.match_buffer(a, (n, T.int64(4)))
            y = T.match_buffer(b, (n, T.int64(4)))
            for i, j in T.grid(n, T.int64(4)):
                with T.sblock("y"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    y[vi, vj] = x[vi, vj] * T.float32(2)

        @R.function
        def main(x: R.Tensor(("n", 4), "float32")) -> R.Tensor(("n", 4), "float32"):
            n = T.int64()
            cls = Before
            with R.dataflow():
                gv = R.call_tir(cls.double, (x,), out_ty=R.Tensor((n, 4), "float32"))
                R.output(gv)
            return gv

    kernel = BindBatch(3)(Before)["double"]
    assert [[int(extent) for extent in param.shape] for param in kernel.params] == [[3, 4], [3, 4]]


def test_constants_become_parameters_once_each():
    value = np.arange(4, dtype="float32")

    @I.ir_module
    class Before:
        @T.prim_func(private=True, s_tir=True)
        def add(
            a: T.Buffer((4,), "float32"), b: T.Buffer((4,), "float32"), c: T.Buffer((4,), "float32")
        ):
            for i in range(4):
                with T.sblock("c"):
                    vi = T.axis.spatial(4, i)
                    c[vi] = a[vi] + b[vi]

        @R.function
        def main(x: R.Tensor((4,), "float32")) -> R.Tensor((4,), "float32"):
            cls = Before
            with R.dataflow():
                y = R.call_tir(cls.add, (x, R.const(value)), R.Tensor((4,), "float32"))
                gv = R.call_tir(cls.add, (y, R.const(value)), R.Tensor((4,), "float32"))
                R.output(gv)
            return gv

    after, arrays = lift_constants(Before)
    assert [array.tolist() for array in arrays] == [value.tolist()]
    assert [param.name for param in after["main"].params] == ["x", "constant_0"]
    machine = relax.VirtualMachine(tvm.compile(after, "llvm"), tvm.cpu())
    x = np.ones(4, "float32")
    y = machine["main"](tvm.runtime.tensor(x), tvm.runtime.tensor(arrays[0]))
    np.testing.assert_array_equal(y.numpy(), x + 2 * value)


def test_large_elementwise_stages_are_shared_between_threads_where_there_are_threads():
    @I.ir_module
    class Before:
        @T.prim_func(s_tir=True)
        def main(x: T.Buffer((256, 256), "float32"), y: T.Buffer((256, 256), "float32")):
            for i, j in T.grid(256, 256):
                with T.sblock("relu"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    y[vi, vj] = T.max(x[vi, vj], T.float32(0))

    @I.ir_module
    class Expected:
        @T.prim_func(s_tir=True)
        def main(x: T.Buffer((256, 256), "float32"), y: T.Buffer((256, 256), "float32")):
            for i in T.parallel(256):
                for j in range(256):  # whole, so that it vectorises
                    with T.sblock("relu"):
                        vi, vj = T.axis.remap("SS", [i, j])
                        T.reads(x[vi, vj])
                        T.writes(y[vi, vj])
                        y[vi, vj] = T.max(x[vi, vj], T.float32(0))

    tvm.ir.assert_structural_equal(ScheduleDefaults(threads=True)(Before), Expected)
    tvm.ir.assert_structural_equal(ScheduleDefaults()(Before), Before)
