"""NormaliseIndices: constant negative indices count from the front."""

import numpy as np
import pytest
import tvm
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
                gv = R.take(x, R.const(np.array([4, 0, 0], "int64")), axis=1)
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(NormaliseIndices()(Before), Expected)


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
