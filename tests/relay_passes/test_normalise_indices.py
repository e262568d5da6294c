"""NormaliseIndices: indices count from the front and stay inside what they point into."""

import numpy as np
import pytest
import torch
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

import tbn_tvm
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


def test_an_index_beyond_an_end_reads_the_element_there_and_a_negative_one_counts_from_the_end():
    @I.ir_module
    class Module:
        @R.function
        def main(x: R.Tensor((2, 5), "float32"), i: R.Tensor((6,), "int64")) -> R.Tensor(
            (2, 6), "float32"
        ):
            with R.dataflow():
                gv = R.take(x, i, axis=1)
                R.output(gv)
            return gv

    x = np.arange(10, dtype="float32").reshape(2, 5)
    run = relax.VirtualMachine(tvm.compile(NormaliseIndices()(Module), "llvm"), tvm.cpu())["main"]
    indices = tvm.runtime.tensor(np.array([1, 5, -1, -5, 2**40, -(2**40)], "int64"))
    np.testing.assert_array_equal(
        run(tvm.runtime.tensor(x), indices).numpy(), x[:, [1, 4, 4, 0, 4, 0]]
    )


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


def test_places_that_only_data_knows_are_brought_inside():
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((2, 8), "float32"),
            i: R.Tensor((2, 3), "int64"),
            u: R.Tensor((2, 3), "float32"),
        ) -> R.Tensor((2, 8), "float32"):
            with R.dataflow():
                gv = R.scatter_elements(x, i, u, axis=1)
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(
            x: R.Tensor((2, 8), "float32"),
            i: R.Tensor((2, 3), "int64"),
            u: R.Tensor((2, 3), "float32"),
        ) -> R.Tensor((2, 8), "float32"):
            with R.dataflow():
                above = R.maximum(i, R.const(-8, "int64"))
                near = R.minimum(above, R.const(7, "int64"))
                negative = R.less(near, R.const(0, "int64"))
                counted = R.add(near, R.const(8, "int64"))
                inside = R.where(negative, counted, near)
                gv = R.scatter_elements(x, inside, u, axis=1)
                R.output(gv)
            return gv

    once = NormaliseIndices()(Before)
    tvm.ir.assert_structural_equal(once, Expected)
    tvm.ir.assert_structural_equal(NormaliseIndices()(once), Expected)


def test_constant_places_are_brought_inside_without_operators():
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 5), "float32")) -> R.Tensor((3,), "float32"):
            with R.dataflow():
                gv = R.gather_nd(x, R.const(np.array([[-1, 2], [0, -5], [7, -9]]), "int64"))
                R.output(gv)
            return gv

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((2, 5), "float32")) -> R.Tensor((3,), "float32"):
            with R.dataflow():
                gv = R.gather_nd(x, R.const(np.array([[1, 2], [0, 0], [1, 0]]), "int64"))
                R.output(gv)
            return gv

    tvm.ir.assert_structural_equal(NormaliseIndices()(Before), Expected)


INDICES = np.array([100, -50, -2, 1], "int64")
PLACES = np.array([7, 0, 6, 1])
"""Where these indices point along an axis of eight."""


def _ran(shape, dtype, indices, of):
    """What an operator makes of 8 numbers counted from 0 along the first axis."""
    x, i = relax.Var("x", relax.TensorType(shape, "float32")), np.asarray(indices, dtype)
    at = relax.Var("i", relax.TensorType(i.shape, dtype))
    builder = relax.BlockBuilder()
    with builder.function("main", [x, at]):
        with builder.dataflow():
            result = builder.emit_output(of(x, at))
        builder.emit_func_output(result)
    built = tvm.compile(NormaliseIndices()(builder.get()), "llvm")
    run = relax.VirtualMachine(built, tvm.cpu())["main"]
    data = np.arange(8 * (3 if len(shape) > 1 else 1), dtype="float32")
    return run(tvm.runtime.tensor(data.reshape(8, *shape[1:])), tvm.runtime.tensor(i)).numpy()


UPDATES = relax.const(np.array([-1, -2, -3, -4], "float32"))
WRITTEN = [-2, -4, 2, 3, 4, 5, -3, -1]


@pytest.mark.parametrize("extent", [8, "n"])
@pytest.mark.parametrize("dtype", ["int64", "int32"])
@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (lambda x, i: relax.op.gather_elements(x, i, 0), PLACES),
        (lambda x, i: relax.op.index_tensor(x, [i]), PLACES),
        (lambda x, i: relax.op.scatter_elements(x, i, UPDATES, -1), WRITTEN),
        (lambda x, i: relax.op.index_put(x, (i,), UPDATES), WRITTEN),
    ],
    ids=["gather_elements", "index_tensor", "scatter_elements", "index_put"],
)
def test_indices_outside_point_at_the_ends_whatever_the_extent(extent, dtype, of, expected):
    extent = relax.prim_value(8) if extent == 8 else tvm.tirx.Var("n", "int64")
    np.testing.assert_array_equal(_ran([extent], dtype, INDICES, of), expected)


def test_coordinates_have_the_extent_of_their_own_axis():
    indices = [[100, -50], [-2, 100], [1, -1]]
    places = [7 * 3 + 0, 6 * 3 + 2, 1 * 3 + 2]
    gathered = _ran([8, 3], "int64", indices, relax.op.gather_nd)
    np.testing.assert_array_equal(gathered, places)
    updates = relax.const(np.array([-1, -2, -3], "float32"))
    written = _ran([8, 3], "int64", indices, lambda x, i: relax.op.scatter_nd(x, i, updates))
    expected = np.arange(24)
    expected[places] = [-1, -2, -3]
    np.testing.assert_array_equal(written.reshape(-1), expected)


class Scatter(torch.nn.Module):
    def forward(self, x):
        return torch.full_like(x, 9).scatter(1, x[:, :2].long(), x[:, 2:4])


def test_a_scatter_of_pytorch_writes_nothing_but_its_tensor():
    x = torch.tensor([[100.0, -50, 1, 2, 0, 0, 0, 0]])
    program = torch.export.export(Scatter(), (x,))
    (y,) = tbn_tvm.compile(program, "llvm").run(x.numpy())
    np.testing.assert_array_equal(y, [2, 9, 9, 9, 9, 9, 9, 1])
