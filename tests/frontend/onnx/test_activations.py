"""Activations in every type of float, against ONNX's definitions."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from tbn_tvm.errors import FormatError
from tbn_tvm.evaluate import evaluate
from tbn_tvm.frontend.onnx import prepare
from tbn_tvm.importing import import_model

NODE = helper.make_node
NODES = [
    NODE("Elu", ["x"], ["elu"], alpha=0.7),
    NODE("Celu", ["x"], ["celu"], alpha=2.0),
    NODE("Selu", ["x"], ["selu"]),
    NODE("Swish", ["x"], ["swish"], alpha=1.5),
    NODE("Swish", ["x"], ["silu"]),
    NODE("SwiGLU", ["x", "z"], ["swiglu"], alpha=0.5),
]


@pytest.mark.parametrize(
    ("dtype", "close"),
    [("float16", 2e-3), ("bfloat16", 2e-2), ("float32", 1e-5), ("float64", 1e-12)],
)
def test_activations(models, dtype, close):
    kind = {"float32": "FLOAT", "float64": "DOUBLE"}.get(dtype, dtype.upper())
    outputs = {node.output[0]: (kind, [2, 9]) for node in NODES}
    model = models.make(NODES, {"x": (kind, [2, 9]), "z": (kind, [2, 9])}, outputs, opset=28)
    number = helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    x = np.linspace(-6, 6, 18).reshape(2, 9).astype(number)
    z = np.random.default_rng(0).standard_normal((2, 9)).astype(number)
    results = evaluate(import_model(prepare(model)), [x, z])
    # The definitions in more digits: evaluators round each step to the type.
    exact = models.make(
        NODES,
        {"x": ("DOUBLE", [2, 9]), "z": ("DOUBLE", [2, 9])},
        {name: ("DOUBLE", [2, 9]) for name in outputs},
        opset=28,
    )
    feeds = {"x": x.astype("float64"), "z": z.astype("float64")}
    expected = ReferenceEvaluator(exact).run(None, feeds)
    for result, value, node in zip(results, expected, NODES, strict=True):
        assert result.dtype == number
        np.testing.assert_allclose(
            result.astype("float64"), value, rtol=close, atol=close, err_msg=node.op_type
        )


def test_large_numbers_do_not_overflow(models):
    nodes = NODES[:3]
    model = models.make(nodes, {"x": [2]}, {node.output[0]: [2] for node in nodes}, opset=22)
    results = evaluate(import_model(prepare(model)), [np.array([1e4, -1e4], np.float32)])
    scale = 1.0507009873554805
    expected = [[1e4, -0.7], [1e4, -2], [scale * 1e4, scale * -1.6732632423543772]]
    np.testing.assert_allclose(results, expected, rtol=1e-6)


def test_what_is_no_number_stays_none(models):
    nodes = NODES[:3]
    model = models.make(nodes, {"x": [2]}, {node.output[0]: [2] for node in nodes}, opset=22)
    for result in evaluate(import_model(prepare(model)), [np.array([np.nan, 2], np.float32)]):
        assert np.isnan(result).tolist() == [True, False]


def test_an_alpha_of_zero_is_refused(models):
    model = models.make([NODE("Celu", ["x"], ["y"], alpha=0.0)], {"x": [2]}, {"y": [2]})
    with pytest.raises(FormatError, match="alpha 0: expected another"):
        import_model(prepare(model))
