"""Numbers at their edges, and logical values, against ONNX's definitions."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from tbn_tvm.evaluate import evaluate
from tbn_tvm.frontend.onnx import prepare
from tbn_tvm.importing import import_model

NODE = helper.make_node


def test_logic(models):
    nodes = [
        NODE("ReduceMax", ["x", "axis"], ["any"], keepdims=0),
        NODE("ReduceMin", ["x", "axis"], ["all"]),
        NODE("ReduceMax", ["x"], ["at_all"]),
        NODE("ReduceMin", ["x"], ["same"], noop_with_empty_axes=1),
        NODE("Equal", ["x", "all"], ["equal"]),
    ]
    outputs = {"any": [4], "all": [4, 1], "at_all": [1, 1], "same": [4, 2], "equal": [4, 2]}
    model = models.make(
        nodes,
        {"x": ("BOOL", [4, 2])},
        {name: ("BOOL", shape) for name, shape in outputs.items()},
        {"axis": np.array([1])},
        opset=20,
    )
    x = np.array([[False, False], [False, True], [True, False], [True, True]])
    results = evaluate(import_model(prepare(model)), [x])
    expected = [x.any(1), x.all(1, keepdims=True), x.any(keepdims=True), x]
    expected.append(x == expected[1])
    for result, value in zip(results, expected, strict=True):
        assert result.dtype == bool
        np.testing.assert_array_equal(result, value)


def test_infinities_of_a_sign(models):
    signs = {"both": (1, 1), "above": (0, 1), "below": (1, 0), "none": (0, 0)}
    nodes = [
        NODE("IsInf", ["x"], [name], detect_negative=below, detect_positive=above)
        for name, (below, above) in signs.items()
    ]
    model = models.make(nodes, {"x": [4]}, {name: ("BOOL", [4]) for name in signs}, opset=20)
    x = np.array([np.inf, -np.inf, np.nan, 1], np.float32)
    results = evaluate(import_model(prepare(model)), [x])
    expected = [np.isinf(x), np.isposinf(x), np.isneginf(x), np.zeros(4, bool)]
    for result, value in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, value)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_remainders_of_floats(models, dtype):
    kind = {"float16": "FLOAT16", "float32": "FLOAT", "float64": "DOUBLE"}[dtype]
    nodes = [NODE("Mod", ["x", "y"], ["rest"]), NODE("Mod", ["x", "y"], ["of_x"], fmod=1)]
    types = dict.fromkeys(("x", "y"), (kind, [11])), dict.fromkeys(("rest", "of_x"), (kind, [11]))
    model = models.make(nodes, *types, opset=18)
    x = np.array([5.5, -5.5, 5.5, -5.5, 3, -3, 3, -3, np.inf, 1, 6], dtype)
    y = np.array([2, 2, -2, -2, np.inf, np.inf, -np.inf, -np.inf, 2, 0, 3], dtype)
    rest, of_x = evaluate(import_model(prepare(model)), [x, y])
    np.testing.assert_array_equal(rest, np.mod(x, y))
    np.testing.assert_array_equal(of_x, np.fmod(x, y))


def test_where_the_extremes_of_infinities_are(models):
    last = {"first": {}, "last": {"select_last_index": 1}}
    nodes = [
        NODE(kind, ["x"], [f"{which} {kind}"], axis=1, keepdims=0, **options)
        for kind in ("ArgMax", "ArgMin")
        for which, options in last.items()
    ]
    outputs = {node.output[0]: ("INT64", [4]) for node in nodes}
    model = models.make(nodes, {"x": ("FLOAT", [4, 3])}, outputs, opset=18)
    infinity = np.inf
    x = np.array([[-infinity] * 3, [infinity] * 3, [1, 3, 3], [2, -infinity, 2]], "float32")
    found = evaluate(import_model(prepare(model)), [x])
    np.testing.assert_array_equal(found, [[0, 0, 1, 0], [2, 2, 2, 2], [0, 0, 0, 1], [2, 2, 0, 1]])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_greatest_of_infinities(models, dtype):
    kind = {"float16": "FLOAT16", "float32": "FLOAT", "float64": "DOUBLE"}[dtype]
    nodes = [
        NODE("ReduceMax", ["x", "axis"], ["above"], keepdims=0),
        NODE("ReduceMin", ["x", "axis"], ["below"]),
        NODE("ReduceMax", ["x"], ["top"], keepdims=0),
    ]
    outputs = {"above": [None], "below": [None, 1], "top": []}
    model = models.make(
        nodes,
        {"x": (kind, ["n", 2])},
        {name: (kind, shape) for name, shape in outputs.items()},
        {"axis": np.array([-1])},
        opset=18,
    )
    x = np.array([[-np.inf] * 2, [np.inf] * 2, [np.finfo(dtype).min, -1]], dtype)
    results = evaluate(import_model(prepare(model)), [x])
    expected = [x.max(1), x.min(1, keepdims=True), x.max()]
    for result, value in zip(results, expected, strict=True):
        assert (result.dtype, result.shape) == (value.dtype, value.shape)
        np.testing.assert_array_equal(result, value)
