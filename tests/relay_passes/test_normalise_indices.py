"""NormaliseIndices: constant negative indices count from the front."""

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tbn_tvm.relay_passes import NormaliseIndices


def test_negative_indices_get_the_extent_of_their_axis():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 5), "float32")) -> R.Tensor((2, 3), "float32"):
            with R.dataflow():
                gv = R.take(x, R.const(np.array([-1, 0, -5], "int64")), axis=1)
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 5), "float32")) -> R.Tensor((2, 3), "float32"):
            with R.dataflow():
                gv = R.take(x, R.const(np.array([4, 0, 0], "int64")), axis=1, mode="clip")
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(NormaliseIndices()(Before), Expected)


def test_an_index_beyond_the_end_reads_the_last_element():
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((2, 5), "float32"), i: R.Tensor((3,), "int64")) -> R.Tensor(
            (2, 3), "float32"
        ):
            with R.dataflow():
                gv = R.take(x, i, axis=1)
                R.output(gv)
            return gv

    x = np.arange(10, dtype="float32").reshape(2, 5)
    run = relax.VirtualMachine(tvm.compile(NormaliseIndices()(Module), "llvm"), tvm.cpu())["main"]
    y = run(tvm.runtime.tensor(x), tvm.runtime.tensor(np.array([1, 5, 2**40], "int64"))).numpy()
    np.testing.assert_array_equal(y, x[:, [1, 4, 4]])


def test_a_negative_index_along_a_free_axis_is_refused():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("n", 5), "float32")) -> R.Tensor((1, 5), "float32"):
            with R.dataflow():
                gv = R.take(x, R.const(np.array([-1], "int64")), axis=0)
                R.output(gv)
            return gv

    with pytest.raises(ValueError, match="free size"):
        NormaliseIndices()(Before)
