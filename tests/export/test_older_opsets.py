"""Models of opset 18 lowered to older ones, in ONNX Runtime."""

import numpy as np
import pytest

from tbn_tvm.errors import UsageError
from tbn_tvm.export.older_opsets import lower_to_opset

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

X = np.random.default_rng(0).normal(size=(2, 3, 7)).astype(np.float32)


def model_of(body: str, outputs: str, opset: int = 18, shape: str = "2, 3, 7") -> "onnx.ModelProto":
    """A model of one input, x, with the constants ``axes``, (1, 2), and ``last``, (-1,)."""
    return onnx.parser.parse_model(
        f"""
        <ir_version: 8, opset_import: ["": {opset}]>
        main (float[{shape}] x) => ({outputs})
        <int64[2] axes = {{1, 2}}, int64[1] last = {{-1}}>
        {{ {body} }}
        """
    )


def run(model) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": X})


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("y = ReduceMean <keepdims = 0> (x, axes)", "float[b] y"),
        ("y = ReduceMax (x, last)", "float[a, b, c] y"),
        ("y = ReduceL2 (x)", "float[a, b, c] y"),
        ("y, z = Split <axis = 1, num_outputs = 2> (x)", "float[a, b, c] y, float[a, d, c] z"),
        (
            "y, z, u = Split <axis = -1, num_outputs = 3> (x)",
            "float[a, b, c] y, float[d] z, float[e] u",
        ),
        ("y = Mish (x)", "float[a, b, c] y"),
        ("y = Relu (x)", "float[a, b, c] y"),
    ],
)
def test_a_lowered_model_computes_the_same(body, outputs):
    model = model_of(body, outputs)
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    expected = run(model)
    lower_to_opset(model, 17)
    model.opset_import[0].version = 17
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(model), full_check=True)
    for y, wanted in zip(run(model), expected, strict=True):
        np.testing.assert_allclose(y, wanted, rtol=1e-6, atol=1e-6)
    used = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= used, "nothing unused is left"


@pytest.mark.parametrize(
    ("body", "shape", "message"),
    [
        ("y = ReduceMean <noop_with_empty_axes = 1> (x)", "2, 3, 7", "reduces nothing"),
        (
            "i = Shape (x) j = Slice (i, last, last) y = ReduceSumSquare (x, j)",
            "2, 3, 7",
            "computed",
        ),
        ("y, z = Split <axis = 1, num_outputs = 2> (x)", "2, n, 7", "symbolic"),
        (
            "i = Cast <to = 7> (x) j = BitwiseNot (i) y = Cast <to = 1> (j)",
            "2, 3, 7",
            "does not have",
        ),
    ],
)
def test_what_opset_17_cannot_say_is_refused(body, shape, message):
    model = model_of(body, "float[a, b, c] y", shape=shape)
    with pytest.raises(UsageError, match=rf"{message}.*; choose opset 18"):
        lower_to_opset(model, 17)


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("amounts", [(0, 1, 2, 0, 2, 1), (0, 0, 0, 0, 0, 3), (0, 0, 0, 0, 0, 0)])
def test_circular_padding_becomes_slices(opset, amounts):
    pads = ", ".join(map(str, amounts))
    model = onnx.parser.parse_model(
        f"""
        <ir_version: 8, opset_import: ["": 19]>
        main (float[2, 3, 7] x) => (float[a, b, c] y) <int64[6] pads = {{{pads}}}>
        {{ y = Pad <mode = "wrap"> (x, pads) }}
        """
    )
    lower_to_opset(model, opset)
    model.opset_import[0].version = opset
    onnx.checker.check_model(model, full_check=True)
    assert "Pad" not in {node.op_type for node in model.graph.node}
    expected = np.pad(X, list(zip(amounts[:3], amounts[3:], strict=True)), mode="wrap")
    np.testing.assert_array_equal(run(model)[0], expected)
