"""Running products, norms, diagonals and windows, against ONNX's definitions."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from tbn_tvm.evaluate import evaluate
from tbn_tvm.frontend.onnx import prepare
from tbn_tvm.importing import import_model

NODE = helper.make_node
KINDS = {"float16": "FLOAT16", "float32": "FLOAT", "float64": "DOUBLE", "int32": "INT32"}


@pytest.mark.parametrize("dtype", list(KINDS))
def test_running_products(models, dtype):
    nodes = [
        NODE("CumProd", ["x", "axis"], [f"y{e}{r}"], exclusive=e, reverse=r)
        for e in (0, 1)
        for r in (0, 1)
    ]
    outputs = {node.output[0]: (KINDS[dtype], [3, 4]) for node in nodes}
    arrays = {"axis": np.array(-1)}
    model = models.make(nodes, {"x": (KINDS[dtype], [3, 4])}, outputs, arrays, opset=26)
    x = np.random.default_rng(0).integers(-3, 4, (3, 4)).astype(dtype)
    results = evaluate(import_model(prepare(model)), [x])
    for result, value in zip(results, ReferenceEvaluator(model).run(None, {"x": x}), strict=True):
        assert result.dtype == value.dtype
        np.testing.assert_array_equal(result, value)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_norms(models, dtype):
    nodes = [NODE("LpNormalization", ["x"], [f"y{p}"], axis=a, p=p) for p, a in ((1, 0), (2, -1))]
    shape = (KINDS[dtype], [3, 4])
    model = models.make(nodes, {"x": shape}, {"y1": shape, "y2": shape}, opset=22)
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(dtype)
    x[1] = 0
    x[:, 2] = 0
    one, two = evaluate(import_model(prepare(model)), [x])
    assert one.dtype == two.dtype == dtype
    exact = x.astype("float64")
    sizes = np.abs(exact).sum(0, keepdims=True), np.sqrt((exact**2).sum(1, keepdims=True))
    for result, size in zip((one, two), sizes, strict=True):
        expected = np.divide(exact, size, out=np.zeros((3, 4)), where=size > 0)
        close = {"float16": 1e-3, "float32": 1e-6, "float64": 1e-12}[dtype]
        np.testing.assert_allclose(result, expected, rtol=close, atol=close)


@pytest.mark.parametrize("axis", [1, -1])
def test_means_and_deviations_of_layers(models, axis):
    node = NODE("LayerNormalization", ["x", "s"], ["y", "mean", "inverse"], axis=axis)
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    scale = np.linspace(1, 2, 12, dtype=np.float32).reshape(3, 4)
    scale = scale if axis == 1 else scale[0]
    outputs = {name: [None] * 3 for name in node.output}
    model = models.make([node], {"x": ["b", 3, 4]}, outputs, {"s": scale})
    results = evaluate(import_model(prepare(model)), [x])
    for result, value in zip(results, models.expected(model, x=x), strict=True):
        assert (result.dtype, result.shape) == (value.dtype, value.shape)
        np.testing.assert_allclose(result, value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [3, "n"])
def test_diagonals_of_another_type(models, rows):
    nodes = [
        NODE("EyeLike", ["x"], ["above"], k=1, dtype=11),
        NODE("EyeLike", ["x"], ["below"], k=-1),
    ]
    outputs = {"above": ("DOUBLE", [rows, 4]), "below": ("INT32", [rows, 4])}
    model = models.make(nodes, {"x": ("INT32", [rows, 4])}, outputs)
    x = np.ones((3, 4), np.int32)
    results = evaluate(import_model(prepare(model)), [x])
    for result, value in zip(results, models.expected(model, x=x), strict=True):
        assert result.dtype == value.dtype
        np.testing.assert_array_equal(result, value)


def test_windows_are_constants(models):
    nodes = [
        NODE("HannWindow", ["n"], ["hann"]),
        NODE("HammingWindow", ["n"], ["hamming"], periodic=0),
        NODE("BlackmanWindow", ["n"], ["blackman"], output_datatype=11),
        NODE("Cast", ["blackman"], ["single"], to=1),
        NODE("Sum", ["x", "hann", "hamming", "single"], ["y"]),
    ]
    model = models.make(nodes, {"x": [8]}, {"y": [8]}, {"n": np.array(8)})
    prepared = prepare(model)
    assert [node.op_type for node in prepared.graph.nodes] == ["Sum"]
    x = np.zeros(8, np.float32)
    (y,) = evaluate(import_model(prepared), [x])
    np.testing.assert_allclose(y, models.expected(model, x=x)[0], rtol=1e-4, atol=1e-5)
