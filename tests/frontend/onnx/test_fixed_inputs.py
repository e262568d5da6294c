"""What sizes follow from must be constant; messages name the input and say what to do."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from tbn_tvm.errors import FormatError
from tbn_tvm.frontend.onnx import prepare
from tbn_tvm.importing import import_model

NODE = helper.make_node


@pytest.mark.parametrize(
    ("kind", "inputs", "lengths", "name"),
    [
        ("ReduceSum", ["x", "n"], 1, "1, axes"),
        ("Pad", ["x", "n"], 4, "1, pads"),
        ("Pad", ["x", "p", "f"], 1, "2, constant_value"),
        ("Split", ["x", "n"], 1, "1, split"),
        ("TopK", ["x", "n"], 1, "1, K"),
        ("Reshape", ["x", "n"], 2, "1, shape"),
        ("Tile", ["x", "n"], 2, "1, repeats"),
        ("Unsqueeze", ["x", "n"], 1, "1, axes"),
        ("Slice", ["x", "n", "n"], 1, "1, starts"),
        ("CumSum", ["x", "n"], 1, "1, axis"),
        ("ConstantOfShape", ["n"], 2, "0, shape"),
        ("CenterCropPad", ["x", "n"], 2, "1, shape"),
    ],
)
def test_an_input_that_only_data_tell_is_refused(models, kind, inputs, lengths, name):
    given = {"x": [2, 3], "n": ("INT64", [lengths]), "f": []}
    outputs = ["y", "i"] if kind == "TopK" else ["y"]
    model = models.make(
        [NODE(kind, inputs, outputs)],
        {n: given[n] for n in ("x", *inputs) if n in given},
        {"y": [None] * {"Unsqueeze": 3}.get(kind, 2)},
        {"p": np.array([0, 1, 0, 1])},
    )
    with pytest.raises(FormatError, match=rf"\({kind}\): .*its input {name}, must be constant"):
        import_model(prepare(model))


def test_operators_and_outputs_that_are_missing_are_named(models):
    unknown = models.make([NODE("Det", ["x"], ["y"], "area")], {"x": [2, 2]}, {"y": []})
    with pytest.raises(FormatError, match=r"'area' \(Det\): .*export the model with simpler ones"):
        import_model(prepare(unknown))
    node = NODE("MaxPool", ["x"], ["y", "places"], kernel_shape=[2, 2])
    model = models.make(
        [node], {"x": [1, 1, 4, 4]}, {"y": [1, 1, 3, 3], "places": ("INT64", [1, 1, 3, 3])}
    )
    with pytest.raises(FormatError, match=r"\(MaxPool\): .*its output 'places' is not supported"):
        import_model(prepare(model))
