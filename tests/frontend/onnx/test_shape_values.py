"""Shapes as numbers: constants where extents are fixed, tensors where a free one is looked at."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from tbn_tvm.evaluate import evaluate
from tbn_tvm.frontend.onnx import prepare
from tbn_tvm.importing import import_model

NODE = helper.make_node
BATCHES = pytest.mark.parametrize("batch", [2, "b"])
X = np.random.default_rng(0).standard_normal((2, 3, 4), np.float32)


def agrees(models, model, **feeds):
    """Import, compare with ONNX Runtime, and tell which operators were left to compile."""
    prepared = prepare(model)
    results = evaluate(import_model(prepared), list(feeds.values()))
    for result, expected in zip(results, models.expected(model, **feeds), strict=True):
        assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
        np.testing.assert_allclose(result, expected, rtol=1e-6)
    return {node.op_type for node in prepared.graph.nodes}


@BATCHES
def test_shapes_are_tensors_to_whatever_takes_tensors(models, batch):
    nodes = [
        NODE("Shape", ["x"], ["s"]),
        NODE("Identity", ["s"], ["same"]),
        NODE("Cast", ["s"], ["real"], to=1),
        NODE("Shape", ["s"], ["rank"]),
        NODE("Gather", ["s", "zero"], ["first"]),
        NODE("Unsqueeze", ["s", "zeros"], ["row"]),
        NODE("Equal", ["s", "two"], ["is_two"]),
        NODE("Not", ["is_two"], ["is_not"]),
        NODE("Size", ["x"], ["size"]),
        NODE("Sub", ["s", "five"], ["less"]),
        NODE("Div", ["less", "two"], ["half"]),
        NODE("Concat", ["half", "rank", "taken"], ["mixed"], axis=0),
        NODE("Gather", ["s", "i"], ["taken"]),
    ]
    nodes.insert(-2, nodes.pop())
    outputs = {name: [3] for name in ("same", "less", "half")} | {"rank": [1], "first": []}
    outputs |= {"row": [1, 3], "size": [], "mixed": [5]}
    model = models.make(
        nodes,
        {"x": [batch, 3, 4], "i": ("INT64", [1])},
        {name: ("INT64", shape) for name, shape in outputs.items()}
        | {"is_not": ("BOOL", [3]), "real": [3]},
        {
            "zero": np.array(0),
            "zeros": np.array([0]),
            "two": np.array([2]),
            "five": np.array([5]),
        },
    )
    left = agrees(models, model, x=X, i=np.array([-1]))
    if batch == 2:
        assert left == {"Gather", "Concat"}


@BATCHES
def test_shapes_made_of_shapes(models, batch):
    nodes = [
        NODE("Shape", ["x"], ["s"]),
        NODE("Gather", ["s", "zero"], ["b"]),
        NODE("Gather", ["s", "one"], ["rows"]),
        NODE("Gather", ["s", "ones"], ["length"]),
        NODE("Mul", ["b", "rows"], ["product"]),
        NODE("Unsqueeze", ["product", "zeros"], ["all_rows"]),
        NODE("Concat", ["all_rows", "rest"], ["flat"], axis=0),
        NODE("Reshape", ["x", "flat"], ["y"]),
        NODE("Slice", ["s", "zeros", "ones"], ["leading"]),
        NODE("Concat", ["leading", "length", "fours"], ["whole"], axis=0),
        NODE("Equal", ["whole", "rest"], ["is_rest"]),
        NODE("Where", ["is_rest", "ones", "whole"], ["wide"]),
        NODE("Expand", ["r", "wide"], ["z"]),
        NODE("Range", ["zero", "b", "one"], ["places"]),
    ]
    model = models.make(
        nodes,
        {"x": [batch, 3, 4], "r": [4]},
        {"y": [None, None], "z": [None] * 3, "places": ("INT64", [None])},
        {
            "zero": np.array(0),
            "one": np.array(1),
            "zeros": np.array([0]),
            "ones": np.array([1]),
            "fours": np.array([4]),
            "rest": np.array([-1]),
        },
    )
    left = agrees(models, model, x=X, r=X[0, 0])
    if batch == 2:
        assert left == {"Reshape", "Expand"}


def test_an_extent_may_be_what_it_is_compared_with(models):
    nodes = [
        NODE("Shape", ["x"], ["s"], start=0, end=1),
        NODE("Equal", ["s", "one"], ["y"]),
    ]
    model = models.make(nodes, {"x": ["b", 2]}, {"y": ("BOOL", [1])}, {"one": np.array([1])})
    mod = import_model(prepare(model))
    for batch in (1, 2):
        (y,) = evaluate(mod, [np.zeros((batch, 2), np.float32)])
        assert y.tolist() == [batch == 1]


@pytest.mark.parametrize("kind", ["Mul", "Concat"])
def test_shapes_that_double_without_end_take_no_time(models, kind):
    nodes = [NODE("Shape", ["x"], ["s0"])]
    attributes = {"axis": 0} if kind == "Concat" else {}
    nodes += [NODE(kind, [f"s{i}", f"s{i}"], [f"s{i + 1}"], **attributes) for i in range(10)]
    nodes.append(NODE("ReduceMin", ["s10"], ["least"], keepdims=0))
    model = models.make(nodes, {"x": ["b", 1]}, {"least": ("INT64", [])})
    (least,) = evaluate(import_model(prepare(model)), [np.zeros((1, 1), np.float32)])
    assert least == 1
