"""FuseSameShapes: what has another shape than a product is no elementwise follower of it."""

import tvm
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from tbn_tvm.relay_passes import FuseSameShapes


def module(pattern, columns, product=4):
    """A stand-in, an activation and a copy of so many of its columns, of a given pattern."""

    @I.ir_module
    class Module:
        @T.prim_func(private=True, s_tir=True)
        def product(x: T.Buffer((2, 8), "float32"), y: T.Buffer((2, 8), "float32")):
            T.func_attr({"op_pattern": product, "tbn.tiled_product": True})
            for i, j in T.grid(2, 8):
                with T.sblock("y"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    y[vi, vj] = x[vi, vj]

        @T.prim_func(private=True, s_tir=True)
        def relu(x: T.Buffer((2, 8), "float32"), y: T.Buffer((2, 8), "float32")):
            T.func_attr({"op_pattern": 0})
            for i, j in T.grid(2, 8):
                with T.sblock("y"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    y[vi, vj] = T.max(x[vi, vj], T.float32(0))

        @T.prim_func(private=True, s_tir=True)
        def first(x: T.Buffer((2, 8), "float32"), y: T.Buffer((2, columns), "float32")):
            T.func_attr({"op_pattern": pattern})
            for i, j in T.grid(2, columns):
                with T.sblock("y"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    y[vi, vj] = x[vi, vj]

        @R.function
        def main(x: R.Tensor((2, 8), "float32")) -> R.Tensor((2, columns), "float32"):
            cls = Module
            with R.dataflow():
                y = R.call_tir(cls.product, (x,), R.Tensor((2, 8), "float32"))
                z = R.call_tir(cls.relu, (y,), R.Tensor((2, 8), "float32"))
                gv = R.call_tir(cls.first, (z,), R.Tensor((2, columns), "float32"))
                R.output(gv)
            return gv

    return Module


def test_a_slice_from_the_start_becomes_injective():
    tvm.ir.assert_structural_equal(FuseSameShapes()(module(0, 5)), module(2, 5))


def test_a_follower_of_the_same_shape_stays_elementwise():
    tvm.ir.assert_structural_equal(FuseSameShapes()(module(0, 8)), module(0, 8))


def test_what_is_not_elementwise_stays_what_it_is():
    tvm.ir.assert_structural_equal(FuseSameShapes()(module(8, 5)), module(8, 5))


def test_only_followers_of_kernels_that_write_outputs_matter():
    tvm.ir.assert_structural_equal(FuseSameShapes()(module(0, 5, 8)), module(0, 5, 8))
