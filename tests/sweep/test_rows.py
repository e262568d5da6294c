"""A sweep's rows: sizes as if trained so, reasons where a factor cannot be."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from tbn_tvm.compiler import import_model
from tbn_tvm.errors import TbnError, UsageError
from tbn_tvm.inspect import totals
from tbn_tvm.nn import freeze, tile_model
from tbn_tvm.sweep import sweep
from tbn_tvm.sweep.plot import plot_sweep


class Net(nn.Module):
    """A convolution, batch norm, a linear layer with a bias and one without."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.body, self.head = nn.Linear(8 * 16, 24), nn.Linear(24, 5, bias=False)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(torch.relu(self.body(x.flatten(1))))


def imported(p=None):
    """The net in the graph IR, float or tiled."""
    torch.manual_seed(0)
    model = Net().eval()
    if p is not None:
        tile_model(model, p, min_size=130)
        freeze(model)
    batch = torch.export.Dim("batch", min=1)
    return import_model(
        torch.export.export(model, (torch.zeros(2, 2, 4, 4),), dynamic_shapes=({0: batch},))
    )


@pytest.fixture(scope="module")
def float_model():
    return imported()


def test_sizes_are_those_of_a_model_that_was_tiled_so(float_model):
    result = sweep(float_model, [2, 4], min_size=130, measure=False)
    assert [row.label for row in result.rows] == ["float", "2", "4"]
    assert result.rows[0].sums == totals(float_model.layers)
    for row in result.rows[1:]:
        assert row.sums == totals(imported(row.p).layers)
        assert (row.tiled, row.binary, row.float) == (2, 1, 0)
        assert not row.reason


def test_a_tiled_model_gives_the_rows_of_its_float_form(float_model):
    assert sweep(imported(4), [2, 8], min_size=130, measure=False).rows == (
        sweep(float_model, [2, 8], min_size=130, measure=False).rows
    )


def test_a_factor_that_does_not_divide_is_a_row_with_the_reason(float_model):
    rows = sweep(float_model, [2, 5, 4], min_size=130, measure=False).rows
    assert [bool(row.sums) for row in rows] == [True, True, False, True]
    assert rows[2].reason == "5 does not divide the 144 weights of conv"


def test_an_onnx_file_is_swept_under_its_own_names(tmp_path):
    onnx = pytest.importorskip("onnx")
    weight = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)).numpy()
    tensor, floats = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "body.weight"], ["y"])],
        "net",
        [tensor("x", floats, [1, 12])],
        [tensor("y", floats, [1, 8])],
        [onnx.numpy_helper.from_array(weight, "body.weight")],
    )
    path = tmp_path / "net.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), path)
    result = sweep(import_model(path), [4, 5], min_size=0, measure=False)
    assert [row.sums.get("nbytes") for row in result.rows] == [4 * 96, 3 + 4 * 4, None]
    assert result.rows[2].reason == "5 does not divide the 96 weights of body"


def test_each_factor_is_timed_against_float_weights(float_model):
    rows = sweep(float_model, [2, 5], min_size=130).rows
    assert rows[0].measured["ratio"] == 1
    assert rows[1].measured["microseconds"] > 0
    assert rows[1].measured["ratio"] == pytest.approx(
        rows[1].measured["microseconds"] / rows[0].measured["microseconds"]
    )
    assert rows[2].measured == {}


def test_a_gpu_is_told_what_memory_is_planned(float_model):
    rows = sweep(float_model, [2], "cuda=sm_80", min_size=130).rows
    assert rows[1].measured["weights"] < rows[0].measured["weights"]
    for row in rows:
        assert row.measured["peak"] >= row.measured["weights"] + row.measured["activations"]


@pytest.mark.emulator
def test_a_board_is_told_instructions_and_memory_or_that_it_does_not_fit():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1000, 40))  # 160,000 bytes as floats, and 128 KiB there
    program = torch.export.export(model, (torch.zeros(1, 1000),))
    floats, tiled = sweep(import_model(program), [4], "stm32vldiscovery", min_size=0).rows
    assert "flash" in floats.reason and floats.sums and not floats.measured
    assert tiled.measured["instructions"] > 0
    assert 0 < tiled.measured["weights"] < tiled.measured["flash"]


def test_a_picture_has_a_place_for_every_row(float_model, tmp_path):
    pytest.importorskip("matplotlib")
    result = sweep(float_model, [2, 5], min_size=130, measure=False)
    rows = [replace(row, measured={"ratio": 0.5}) if row.sums else row for row in result.rows]
    path = plot_sweep(replace(result, rows=tuple(rows)), tmp_path / "sweep.svg")
    text = path.read_text()
    for words in ("weights, bytes", "multiply-adds of one sample", "time, float weights = 1"):
        assert f"<!-- {words} -->" in text
    assert text.count("<!-- none -->") == 3


def test_the_result_is_json(float_model):
    result = sweep(float_model, [2], min_size=130, measure=False)
    held = json.loads(json.dumps(result.to_dict()))
    assert held["rows"][1]["sums"]["nbytes"] == result.rows[1].sums["nbytes"]


@pytest.mark.parametrize(("factors", "target"), [([0], "llvm"), ([2], "no-such-board")])
def test_impossible_requests_are_usage_errors(float_model, factors, target):
    with pytest.raises(UsageError):
        sweep(float_model, factors, target)


def test_a_model_without_layers_is_refused():
    program = torch.export.export(nn.Sequential(nn.ReLU()), (torch.zeros(1, 4),))
    with pytest.raises(TbnError, match="nothing to tile"):
        sweep(import_model(program), [2])
