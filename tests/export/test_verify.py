"""The comparison of an ONNX file with the program it came from."""

import numpy as np
import pytest
import torch

from tbn_tvm.errors import TbnError
from tbn_tvm.export import to_onnx
from tbn_tvm.export.verify import largest_difference, random_inputs

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


class Lookup(torch.nn.Module):
    """Takes numbers of rows, and where to ignore them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(5, 3)

    def forward(self, ids, mask, scale):
        y = self.table(ids) * mask.unsqueeze(-1) * scale
        return {"sum": y.sum(1), "first": ids[:, 0]}


@pytest.fixture(scope="module")
def lookup() -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=9)
    length = torch.export.Dim("length", min=4, max=9)
    return torch.export.export(
        Lookup(),
        (torch.tensor([[4, 2, 0, 1]] * 2), torch.ones(2, 4, dtype=torch.bool)),
        kwargs={"scale": torch.ones(1)},
        dynamic_shapes={
            "ids": {0: batch, 1: length},
            "mask": {0: batch, 1: length},
            "scale": None,
        },
    )


def test_random_inputs_are_valid_and_not_of_the_examples_size(lookup):
    ids, mask, scale = random_inputs(lookup)
    assert ids.shape == mask.shape == (3, 4), "within the ranges, and not the example's 2"
    assert (ids.dtype, mask.dtype, scale.dtype) == (torch.int64, torch.bool, torch.float32)
    assert set(ids.flatten().tolist()) <= {0, 1, 2, 4}
    assert ids.unique().numel() > 1
    assert all(
        torch.equal(a, b) for a, b in zip(random_inputs(lookup), (ids, mask, scale), strict=True)
    )


@pytest.fixture(scope="module")
def written(lookup, tmp_path_factory):
    """The program as a file, compared when it was written."""
    return to_onnx(lookup, tmp_path_factory.mktemp("written") / "model.onnx")


def test_models_with_named_inputs_integers_and_several_outputs_are_compared(written):
    assert written.difference < 1e-6
    file = onnx.load(written.path)
    assert [value.name for value in file.graph.input] == ["ids", "mask", "scale"]
    assert [value.name for value in file.graph.output] == ["output_0", "output_1"]
    assert not file.functions
    assert [entry.domain for entry in file.opset_import] == [""]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table * np.float32(1.001), "'output_0' differs by"),
        (lambda table: np.where(table == table[4, 0], np.nan, table), "'output_0' differs by"),
        (lambda table: table[:2], "ONNX Runtime cannot run the file"),
    ],
)
def test_a_file_with_other_weights_is_found_out(lookup, written, tmp_path, change, message):
    model = onnx.load(written.path)
    (table,) = (t for t in model.graph.initializer if t.name == "table.weight")
    changed = change(onnx.numpy_helper.to_array(table)).astype(np.float32)
    table.CopyFrom(onnx.numpy_helper.from_array(changed, table.name))
    path = tmp_path / "changed.onnx"
    onnx.save(model, path)
    with pytest.raises(TbnError, match=message):
        largest_difference(lookup, path)
