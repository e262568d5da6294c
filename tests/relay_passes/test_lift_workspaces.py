"""Scratch memory of kernels becomes an output that nobody reads."""

import tvm
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from tbn_tvm.relay_passes import LiftWorkspaces


def test_scratch_becomes_an_output():
    @I.ir_module
    class Before:
        @T.prim_func(private=True, s_tir=True)
        def twice(x: T.Buffer((8,), "float32"), y: T.Buffer((8,), "float32")):
            scratch = T.sblock_alloc_buffer((8,), "float32")
            for i in T.thread_binding(8, thread="threadIdx.x"):
                with T.sblock("scratch"):
                    v = T.axis.spatial(8, i)
                    scratch[v] = x[v] + T.float32(1)
            for i in T.thread_binding(8, thread="threadIdx.x"):
                with T.sblock("y"):
                    v = T.axis.spatial(8, i)
                    y[v] = scratch[v] * T.float32(2)

        @R.function
        def main(x: R.Tensor((8,), "float32")) -> R.Tensor((8,), "float32"):
            cls = Before
            with R.dataflow():
                y = R.call_tir(cls.twice, (x,), out_ty=R.Tensor((8,), "float32"))
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @T.prim_func(private=True, s_tir=True)
        def twice1(
            x: T.Buffer((8,), "float32"),
            y: T.Buffer((8,), "float32"),
            scratch: T.Buffer((8,), "float32"),
        ):
            for i in T.thread_binding(8, thread="threadIdx.x"):
                with T.sblock("scratch"):
                    v = T.axis.spatial(8, i)
                    scratch[v] = x[v] + T.float32(1)
            for i in T.thread_binding(8, thread="threadIdx.x"):
                with T.sblock("y"):
                    v = T.axis.spatial(8, i)
                    y[v] = scratch[v] * T.float32(2)

        @R.function
        def main(x: R.Tensor((8,), "float32")) -> R.Tensor((8,), "float32"):
            cls = Expected
            with R.dataflow():
                both = R.call_tir(
                    cls.twice1,
                    (x,),
                    out_ty=[R.Tensor((8,), "float32"), R.Tensor((8,), "float32")],
                )
                y = both[0]
                R.output(y)
            return y

    tvm.ir.assert_structural_equal(LiftWorkspaces()(Before), Expected)


def test_scratch_as_large_as_the_batch_takes_the_callers_batch():
    @I.ir_module
    class Before:
        @T.prim_func(private=True, s_tir=True)
        def twice(x_handle: T.handle, y_handle: T.handle):
            m = T.int64()
            x = T.match_buffer(x_handle, (m, 4), "float32")
            y = T.match_buffer(y_handle, (m, 4), "float32")
            scratch = T.sblock_alloc_buffer((m * 2, 4), "float32")
            for i in range(m):
                with T.sblock("scratch"):
                    v = T.axis.spatial(m, i)
                    scratch[v, 0] = x[v, 0]
            for i in range(m):
                with T.sblock("y"):
                    v = T.axis.spatial(m, i)
                    y[v, 0] = scratch[v, 0]

        @R.function
        def main(x: R.Tensor(("batch", 4), "float32")) -> R.Tensor(("batch", 4), "float32"):
            batch = T.int64()
            cls = Before
            with R.dataflow():
                y = R.call_tir(cls.twice, (x,), out_ty=R.Tensor((batch, 4), "float32"))
                R.output(y)
            return y

    lifted = LiftWorkspaces()(Before)
    (block,) = lifted["main"].body.blocks
    extent = lifted["main"].params[0].ty.shape.values[0]
    scratch = block.bindings[0].var.ty.fields[1]
    tvm.ir.assert_structural_equal(scratch.shape.values[0], extent * 2)


def test_buffers_closer_to_the_threads_stay():
    @I.ir_module
    class Before:
        @T.prim_func(private=True, s_tir=True)
        def copy(x: T.Buffer((8,), "float32"), y: T.Buffer((8,), "float32")):
            shared = T.sblock_alloc_buffer((8,), "float32", scope="shared")
            for i in range(8):
                with T.sblock("shared"):
                    v = T.axis.spatial(8, i)
                    shared[v] = x[v]
            for i in range(8):
                with T.sblock("y"):
                    v = T.axis.spatial(8, i)
                    y[v] = shared[v]

    tvm.ir.assert_structural_equal(LiftWorkspaces()(Before), Before)
