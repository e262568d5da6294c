"""Operators that TVM's importer gets wrong are mended, or refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from tbn_tvm.errors import FormatError
from tbn_tvm.evaluate import evaluate
from tbn_tvm.frontend.onnx import prepare
from tbn_tvm.importing import import_model

NODE = helper.make_node


def test_mended_operators_compute_what_onnx_says(models):
    nodes = [
        NODE("Pow", ["x", "i"], ["power"]),
        NODE("BitShift", ["b", "n"], ["left"], direction="LEFT"),
        NODE("BitShift", ["b", "n"], ["right"], direction="RIGHT"),
        NODE("Gather", ["x", "j"], ["last"], axis=0),
    ]
    model = models.make(
        nodes,
        {"x": [3], "i": ("INT64", [3]), "b": ("UINT8", [3]), "n": ("UINT8", [3])},
        {"power": [3], "left": ("UINT8", [3]), "right": ("UINT8", [3]), "last": [2]},
        {"j": np.array([-1, 0])},
    )
    x, b = np.array([2, -3, 0.5], np.float32), np.array([129, 7, 255], np.uint8)
    results = evaluate(
        import_model(prepare(model)), [x, np.array([3, 2, -1]), b, np.array([1, 8, 255], np.uint8)]
    )
    np.testing.assert_allclose(results[0], [8, 9, 2], rtol=1e-6)
    assert [r.tolist() for r in results[1:3]] == [[2, 0, 0], [64, 0, 0]]
    assert results[3].tolist() == [0.5, 2]


CUBIC = {"mode": "cubic", "antialias": 1}


@pytest.mark.parametrize(
    ("node", "x", "y", "arrays", "told"),
    [
        (
            NODE("BatchNormalization", ["x", *"ssss"], ["y", "m", "v"], training_mode=1),
            [1, 2, 4, 4],
            [1, 2, 4, 4],
            {"s": np.ones(2, "f")},
            "training_mode is for training",
        ),
        (
            NODE("Resize", ["x", "", "f"], ["y"], mode="linear"),
            [1, 1, 4, 4],
            [1, 1, 2, 2],
            {"f": np.array([1, 1, 0.6, 0.6], "f")},
            "a scale of 0.6.* gives no whole size",
        ),
        (
            NODE("Resize", ["x", "", "", "n"], ["y"], **CUBIC),
            [1, 1, 4, 4],
            [1, 1, 2, 2],
            {"n": np.array([1, 1, 2, 2])},
            "antialias is not supported",
        ),
        (
            NODE("RoiAlign", ["x", "r", "i"], ["y"], mode="max"),
            [1, 1, 4, 4],
            [1, 1, 1, 1],
            {"r": np.ones((1, 4), "f"), "i": np.zeros(1, np.int64)},
            "mode 'max' is not supported",
        ),
    ],
    ids=["training", "scales", "antialias", "roi"],
)
def test_uses_that_tvm_gets_wrong_are_refused(models, node, x, y, arrays, told):
    model = models.make([node], {"x": x}, {"y": y}, arrays)
    with pytest.raises(FormatError, match=rf"\({node.op_type}\): .*{told}"):
        import_model(prepare(model))
