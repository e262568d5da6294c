"""The ONNX functions of tiled layers, executed by ONNX Runtime and read back."""

import math

import numpy as np
import pytest

from tbn_tvm.errors import FormatError
from tbn_tvm.export.functions import (
    CONV,
    DOMAIN,
    LINEAR,
    VERSION,
    is_tiled_function,
    read_tiled_node,
    tiled_function,
)
from tbn_tvm.tiling import TiledTensor

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

CONV_ATTRIBUTES = {"strides": [1, 2], "pads": [1, 0, 2, 1], "dilations": [1, 1], "group": 1}


def random_tiled(shape, p, alphas, dtype=np.float32):
    random = np.random.default_rng(math.prod(shape) + p)
    signs = random.choice([-1, 1], math.prod(shape) // p)
    # Representable in the dtype, so that the reference need not round as the function does.
    scales = random.uniform(0.1, 1, alphas).astype(dtype).astype(np.float32)
    return TiledTensor.from_signs(signs, scales, shape)


def one_node_model(name, tiled, x, bias=None, opset=18, **attributes):
    """A model of one call of a function."""
    arrays = {"tile": tiled.tile, "alpha": tiled.alphas, **({} if bias is None else {"bias": bias})}
    node = onnx.helper.make_node(
        name, ["x", *arrays], ["y"], "layer", domain=DOMAIN, shape=tiled.shape, p=tiled.p
    )
    node.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in attributes.items())
    dtype = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    shape = [f"d{i}" for i in range(x.ndim)]
    graph = onnx.helper.make_graph(
        [node],
        "graph",
        [onnx.helper.make_tensor_value_info("x", dtype, x.shape)],
        [onnx.helper.make_tensor_value_info("y", dtype, shape)],
        [onnx.numpy_helper.from_array(value, key) for key, value in arrays.items()],
    )
    model = onnx.helper.make_model(
        graph,
        functions=[tiled_function(name, opset)],
        opset_imports=[
            onnx.helper.make_opsetid("", opset),
            onnx.helper.make_opsetid(DOMAIN, VERSION),
        ],
        ir_version=8,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model, x):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("opset", [17, 18, 21, 23])
@pytest.mark.parametrize(
    ("shape", "p", "alphas"),
    [
        pytest.param((8, 12), 4, 4, id="whole rows"),
        pytest.param((8, 12), 4, 1, id="one alpha"),
        pytest.param((3, 12), 12, 12, id="whole tiles, q = 3"),
        pytest.param((9, 10), 6, 6, id="ragged, q = 15"),
        pytest.param((7, 5), 1, 1, id="binary"),
        pytest.param((4, 4), 16, 16, id="one bit"),
    ],
)
def test_a_linear_function_is_the_product_with_the_expanded_weight(opset, shape, p, alphas):
    tiled = random_tiled(shape, p, alphas)
    random = np.random.default_rng(0)
    bias = random.normal(size=shape[0]).astype(np.float32)
    for leading in ((2, 3), (1,), (), (0,)):
        x = random.normal(size=(*leading, shape[1])).astype(np.float32)
        for given in (bias, None):
            expected = x.astype(np.float64) @ tiled.expand(np.float64).T
            expected += 0 if given is None else given
            y = run(one_node_model(LINEAR, tiled, x, given, opset), x)
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_the_weight_takes_the_inputs_dtype(dtype):
    tiled = random_tiled((8, 12), 4, 4, dtype)
    x = np.random.default_rng(0).normal(size=(3, 12)).astype(dtype)
    y = run(one_node_model(LINEAR, tiled, x), x)
    assert y.dtype == dtype
    expected = x.astype(np.float64) @ tiled.expand(np.float64).T
    tolerance = 20 * np.finfo(dtype).eps
    np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("group", [1, 2])
def test_a_convolution_function_is_onnx_conv_with_the_expanded_weight(group):
    tiled = random_tiled((6, 4 // group, 3, 2), 6, 6)
    x = np.random.default_rng(0).normal(size=(2, 4, 7, 8)).astype(np.float32)
    attributes = {**CONV_ATTRIBUTES, "group": group}
    from onnx.reference import ReferenceEvaluator

    dense = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[2, 4, 7, 8] x, float[a, b, c, d] w)'
        f" => (float[e, f, g, h] y) {{ y = Conv <strides = [1, 2], pads = [1, 0, 2, 1],"
        f" group = {group}> (x, w) }}"
    )
    (expected,) = ReferenceEvaluator(dense).run(None, {"x": x, "w": tiled.expand()})
    y = run(one_node_model(CONV, tiled, x, **attributes), x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "attributes"), [(LINEAR, {}), (CONV, CONV_ATTRIBUTES)])
def test_a_node_reads_back_as_what_was_written(name, attributes):
    tiled = random_tiled((9, 10) if name == LINEAR else (9, 2, 5, 1), 6, 6)
    x = np.zeros((1, 10) if name == LINEAR else (1, 2, 7, 8), np.float32)
    model = one_node_model(name, tiled, x, **attributes)
    tile, alpha = map(onnx.numpy_helper.to_array, model.graph.initializer)
    read = read_tiled_node(model.graph.node[0], tile, alpha)
    assert read.weight == tiled
    for key, value in attributes.items():
        given = getattr(read, key)
        assert (list(given) if isinstance(given, tuple) else given) == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [9, 11]}, "does not divide"),
        ({"shape": [9]}, "2 integers"),
        ({"shape": [-9, -10]}, ">= 1"),
        ({"shape": 9}, "list of integers"),
        ({"p": 0}, "at least 1"),
        ({"p": [6]}, "an integer"),
        ({"p": 3}, "byte"),
    ],
)
def test_a_node_that_is_no_tiled_layer_is_refused_by_name(change, message):
    tiled = random_tiled((9, 10), 6, 6)
    node = onnx.helper.make_node(
        LINEAR, ["x", "t", "a"], ["y"], "layer", **{"shape": [9, 10], "p": 6, **change}
    )
    with pytest.raises(FormatError, match=rf"'layer'.*{message}"):
        read_tiled_node(node, tiled.tile, tiled.alphas)


def test_a_function_is_ours_by_its_body_and_not_by_its_name():
    for name in (LINEAR, CONV):
        for opset in (17, 22):
            function = tiled_function(name, opset)
            assert is_tiled_function(function)
            function.doc_string = "Said in other words."
            function.node[0].name = "named"
            assert is_tiled_function(function)
            function.node[-1].input[-1] = "other"
            assert not is_tiled_function(function)
    stranger = tiled_function(LINEAR, 18)
    stranger.domain = "com.example"
    assert not is_tiled_function(stranger)
    assert is_tiled_function(tiled_function(LINEAR, 18)), "callers get copies"
