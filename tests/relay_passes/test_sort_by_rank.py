"""SortByRank: sorts as loops, equal to PyTorch's stable ones."""

import numpy as np
import pytest
import torch
import tvm
from tvm import relax

from tbn_tvm.relay_passes import SortByRank


def run(build, x):
    """What a graph of one operator computes once the pass has made it a call of a kernel."""
    builder = relax.BlockBuilder()
    var = relax.Var("x", relax.TensorType(x.shape, str(x.dtype)))
    with builder.function("main", [var]):
        with builder.dataflow():
            out = builder.emit_output(build(var))
        builder.emit_func_output(out)
    mod = SortByRank()(builder.get())
    called = [binding.value.op.name for binding in mod["main"].body.blocks[0].bindings[:1]]
    assert called == ["relax.call_tir"]
    made = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())["main"](tvm.runtime.tensor(x))
    return [made.numpy()] if isinstance(made, tvm.runtime.Tensor) else [t.numpy() for t in made]


def samples(dtype):
    """Rows with equal elements, and for floats NaN and infinities."""
    x = np.random.default_rng(0).integers(-3, 4, (3, 7, 2)).astype(dtype)
    if dtype == "float32":
        x[0, 2, 0], x[0, 4, 0], x[1, 3, 1] = np.nan, np.nan, -np.inf
    return x


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("axis", [1, -1])
def test_sorts_are_stable_and_nan_is_the_greatest(dtype, descending, axis):
    x = samples(dtype)
    values, indices = torch.from_numpy(x).sort(dim=axis, descending=descending, stable=True)
    (ours,) = run(lambda v: relax.op.sort(v, axis, descending), x)
    np.testing.assert_array_equal(ours, values.numpy())
    (ours,) = run(lambda v: relax.op.argsort(v, axis, descending, "int64"), x)
    assert ours.dtype == np.int64
    np.testing.assert_array_equal(ours, indices.numpy())


@pytest.mark.parametrize("largest", [False, True])
def test_topk_is_the_head_of_a_sort(largest):
    x = samples("float32")
    values, indices = torch.from_numpy(x).sort(dim=1, descending=largest, stable=True)
    both = run(lambda v: relax.op.topk(v, 3, 1, "both", largest, "int64"), x)
    np.testing.assert_array_equal(both[0], values[:, :3].numpy())
    np.testing.assert_array_equal(both[1], indices[:, :3].numpy())
    (ours,) = run(lambda v: relax.op.topk(v, 3, 1, "indices", largest, "int32"), x)
    np.testing.assert_array_equal(ours, indices[:, :3].numpy())
