"""Sums of thousands of 16-bit floats, against ONNX's definitions in float64."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from tbn_tvm.evaluate import evaluate
from tbn_tvm.frontend.onnx import prepare
from tbn_tvm.importing import import_model

NODE = helper.make_node
NODES = [
    NODE("AveragePool", ["x"], ["pooled"], kernel_shape=[2999]),
    NODE("GlobalAveragePool", ["x"], ["mean"]),
    NODE("Softmax", ["x"], ["softmax"]),
    NODE("LogSoftmax", ["x"], ["logs"]),
    NODE("ReduceSum", ["x", "last"], ["sum"]),
    NODE("ReduceMean", ["x", "last"], ["reduced"], keepdims=0),
    NODE("ReduceL2", ["x", "last"], ["norm"]),
    NODE("CumSum", ["x", "axis"], ["running"]),
]


@pytest.mark.parametrize("scale", [0.3, 17])
def test_sums_of_half_precision(models, scale):
    x = (np.ones((1, 2, 3000)) * scale).astype(np.float16)
    arrays = {"last": np.array([-1]), "axis": np.array(2)}

    def model(kind):
        outputs = {node.output[0]: (kind, [None] * 3) for node in NODES}
        outputs["reduced"] = (kind, [None] * 2)
        return models.make(NODES, {"x": (kind, [1, 2, 3000])}, outputs, arrays, opset=18)

    results = evaluate(import_model(prepare(model("FLOAT16"))), [x])
    expected = ReferenceEvaluator(model("DOUBLE")).run(None, {"x": x.astype("float64")})
    for result, value, node in zip(results, expected, NODES, strict=True):
        assert (result.dtype, result.shape) == (np.float16, value.shape)
        np.testing.assert_allclose(result, value, rtol=2e-3, err_msg=node.op_type)
