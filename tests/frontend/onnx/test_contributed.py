"""Operators of ONNX Runtime's own compute what it says, or are refused with what to do."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from tbn_tvm.errors import FormatError
from tbn_tvm.evaluate import evaluate
from tbn_tvm.frontend.onnx import prepare
from tbn_tvm.frontend.onnx.report import report_initialisers
from tbn_tvm.importing import import_model

DOMAIN = "com.microsoft"


def NODE(kind, inputs, outputs, **attrs):
    return helper.make_node(kind, inputs, outputs, domain=DOMAIN, **attrs)


STANDARD = helper.make_node


def agrees(models, nodes, inputs, outputs, arrays, step: int = 0, **feeds):
    """Within ``step`` where these are integers: ONNX Runtime's are rounded more than once."""
    model = models.make(nodes, inputs, outputs, arrays, opset=17, imports=[(DOMAIN, 1)])
    results = evaluate(import_model(prepare(model)), [feeds[name] for name in inputs])
    for ours, theirs in zip(results, models.expected(model, **feeds), strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        if ours.dtype.kind in "iu":
            assert np.abs(ours.astype(int) - theirs).max() <= step
        else:
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_activations(models):
    nodes = [
        NODE("Gelu", ["x"], ["a"]),
        NODE("BiasGelu", ["x", "b"], ["c"]),
        NODE("FastGelu", ["x"], ["d"]),
        NODE("FastGelu", ["x", "b"], ["e"]),
        NODE("QuickGelu", ["x"], ["f"]),
        NODE("QuickGelu", ["x"], ["g"], alpha=0.5),
    ]
    x = 3 * np.random.default_rng(0).standard_normal((3, 8)).astype("f")
    outputs = {name: ["n", 8] for name in "acdefg"}
    agrees(models, nodes, {"x": ["n", 8]}, outputs, {"b": np.linspace(-1, 1, 8, dtype="f")}, x=x)


def test_products_that_transpose_and_scale(models):
    """Transposed values are of a rank that only what makes them tells."""
    nodes = [
        STANDARD("Reshape", ["x", "shape"], ["q"]),
        NODE("FusedMatMul", ["q", "q"], ["s"], transB=1, alpha=0.25),
        NODE("FusedMatMul", ["s", "q"], ["t"], transA=1),
        NODE("FusedMatMul", ["t", "w"], ["y"], transB=1, alpha=1.0),
        NODE("FusedMatMul", ["w", "w"], ["z"], transA=1),
        NODE("FusedMatMul", ["v", "v"], ["j"], transBatchA=1, transBatchB=1, transB=1),
    ]
    rng = np.random.default_rng(0)
    arrays = {"shape": np.array([0, 2, 3, 4]), "w": rng.standard_normal((5, 4)).astype("f")}
    arrays["v"] = rng.standard_normal((6, 2, 3, 4)).astype("f")
    outputs = {"y": ["n", 2, 3, 5], "z": [4, 4], "j": [2, 3, 6, 6]}
    x = rng.standard_normal((2, 24)).astype("f")
    agrees(models, nodes, {"x": ["n", 24]}, outputs, arrays, x=x)


def test_norms_of_sums(models):
    nodes = [
        NODE("SkipLayerNormalization", ["x", "s", "g", "b"], ["a"]),
        NODE("SkipLayerNormalization", ["x", "s", "g", "b", "e"], ["c", "", "", "t"], epsilon=0.1),
        NODE("SkipLayerNormalization", ["x", "s", "g"], ["d", "", "", "u"]),
    ]
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(8).astype("f") for name in "gbe"}
    x, s = rng.standard_normal((2, 2, 3, 8)).astype("f")
    shape = ["n", 3, 8]
    outputs = dict.fromkeys("actdu", shape)
    agrees(models, nodes, {"x": shape, "s": shape}, outputs, arrays, x=x, s=s)


@pytest.mark.parametrize(
    "attrs",
    [
        {"activation": "Relu"},
        {"activation": "LeakyRelu", "activation_params": [0.2]},
        {"activation": "Clip", "activation_params": [-0.5, 0.5], "pads": [1, 1, 1, 1]},
        {"activation": "HardSigmoid", "activation_params": [0.3, 0.4], "group": 2},
    ],
)
def test_convolutions_with_what_follows_them(models, attrs):
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.standard_normal((6, 4 // attrs.get("group", 1), 3, 3)).astype("f"),
        "b": rng.standard_normal(6).astype("f"),
    }
    x = rng.standard_normal((2, 4, 5, 5)).astype("f")
    node = NODE("FusedConv", ["x", "w", "b"], ["y"], **attrs)
    agrees(models, [node], {"x": ["n", 4, 5, 5]}, {"y": ["n", 6, "h", "w"]}, arrays, x=x)


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu"])
def test_products_of_matrices_with_what_follows_them(models, activation):
    rng = np.random.default_rng(0)
    arrays = {"w": rng.standard_normal((5, 8)).astype("f"), "b": rng.standard_normal(5).astype("f")}
    attrs = {"activation_alpha": 0.2} if activation == "LeakyRelu" else {}
    attrs |= {"activation": activation, "transB": 1, "alpha": 0.5}
    x = rng.standard_normal((3, 8)).astype("f")
    node = NODE("FusedGemm", ["x", "w", "b"], ["y"], **attrs)
    agrees(models, [node], {"x": ["n", 8]}, {"y": ["n", 5]}, arrays, x=x)


def test_products_of_quantised_matrices(models):
    rng = np.random.default_rng(0)
    arrays = {"s": np.float32(0.02), "z": np.uint8(120), "t": np.float32(0.8), "zt": np.uint8(99)}
    arrays |= {"w": rng.integers(-99, 99, (5, 8), "b"), "c": rng.integers(-999, 999, 5, "i")}
    arrays |= {"ws": rng.uniform(0.01, 0.1, 5).astype("f"), "wz": np.zeros(5, "b")}
    given = ["x", "s", "z", "w", "ws", "wz", "c"]
    nodes = [
        NODE("QGemm", [*given, "t", "zt"], ["q"], transB=1),
        NODE("QGemm", given, ["y"], transB=1, alpha=1.0),
        NODE("QLinearSoftmax", ["x", "s", "z", "p", "zp"], ["m"], axis=-1, opset=13),
    ]
    arrays |= {"p": np.float32(1 / 256), "zp": np.uint8(0)}
    x = rng.integers(0, 256, (3, 8), "B")
    outputs = {"q": ("UINT8", ["n", 5]), "y": ["n", 5], "m": ("UINT8", ["n", 8])}
    agrees(models, nodes, {"x": ("UINT8", ["n", 8])}, outputs, arrays, step=1, x=x)


def test_quantised_numbers(models):
    arrays = {"s": np.float32(0.05), "t": np.float32(0.07), "u": np.float32(0.11)}
    arrays |= {"z": np.uint8(120), "zt": np.uint8(90), "zu": np.uint8(130)}
    nodes = [
        NODE("QLinearAdd", ["x", "s", "z", "w", "t", "zt", "u", "zu"], ["a"]),
        NODE("QLinearMul", ["x", "s", "z", "w", "t", "zt", "u", "zu"], ["m"]),
        NODE("QLinearSigmoid", ["x", "s", "z", "c", "zero"], ["g"]),
        NODE("QLinearLeakyRelu", ["x", "s", "z", "u", "zu"], ["l"], alpha=0.3),
        NODE("QLinearGlobalAveragePool", ["x", "s", "z", "s", "zu"], ["p"]),
    ]
    arrays |= {"c": np.float32(1 / 256), "zero": np.uint8(0)}
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 256, (2, 2, 3, 4, 4), "B")
    shape = ("UINT8", ["n", 3, 4, 4])
    outputs = {**dict.fromkeys("amgl", shape), "p": ("UINT8", ["n", 3, 1, 1])}
    agrees(models, nodes, {"x": shape, "w": shape}, outputs, arrays, step=1, x=x, w=w)


@pytest.mark.parametrize(("bits", "zeros"), [(4, None), (4, "B"), (8, "B"), (4, "f"), (2, None)])
def test_products_with_weights_of_a_few_bits(models, bits, zeros):
    """The last block is filled up."""
    rng = np.random.default_rng(0)
    rows, columns, block, count = 6, 72, 32, 3
    arrays = {
        "b": rng.integers(0, 256, (rows, count, block * bits // 8), "B"),
        "s": rng.uniform(0.01, 0.1, (rows, count)).astype("f"),
        "c": rng.standard_normal(rows).astype("f"),
    }
    if zeros == "B":
        arrays["z"] = rng.integers(0, 256, (rows, -(-count * bits // 8)), "B")
    if zeros == "f":
        arrays["z"] = rng.uniform(0, 15, (rows, count)).astype("f")
    attrs = {"K": columns, "N": rows, "bits": bits, "block_size": block}
    nodes = [
        NODE("MatMulNBits", ["x", "b", "s", "z" if zeros else ""], ["y"], **attrs),
        NODE("MatMulNBits", ["x", "b", "s", "z" if zeros else "", "", "c"], ["w"], **attrs),
    ]
    x = rng.standard_normal((2, 3, columns)).astype("f")
    outputs = {"y": ["n", 3, rows], "w": ["n", 3, rows]}
    agrees(models, nodes, {"x": ["n", 3, columns]}, outputs, arrays, x=x)


def test_a_tiled_weight_is_found_in_a_few_bits(models):
    signs = np.sign(models.tiled_weight((16, 32), p=4).expand())
    held = (signs + 8).astype("B")
    arrays = {
        "b": (held[:, 0::2] | held[:, 1::2] << 4).reshape(16, 1, 16),
        "s": np.repeat(np.linspace(0.5, 2, 4, dtype="f"), 4)[:, None],
    }
    node = NODE("MatMulNBits", ["x", "b", "s"], ["y"], K=32, N=16, bits=4, block_size=32)
    shapes = {"x": ["n", 32]}, {"y": ["n", 16]}
    model = models.make([node], *shapes, arrays, imports=[(DOMAIN, 1)])
    prepared = prepare(model)
    rows = {r.name: r for r in report_initialisers(prepared.graph, prepared.initialisers)}
    assert rows["b"].tiled and rows["b"].p == 4
    x = np.random.default_rng(0).standard_normal((2, 32)).astype("f")
    (result,) = evaluate(import_model(prepared), [x])
    np.testing.assert_allclose(result, x @ (signs * arrays["s"]).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (NODE("MultiHeadAttention", ["x"], ["y"]), "as it was before ONNX Runtime optimised"),
        (NODE("Gelu", ["x"], ["y"], beta=1.0), "attribute 'beta' is not supported"),
        (NODE("Gelu", ["x", "x"], ["y"]), "2 inputs: expected 1 to 1"),
        (NODE("QuickGelu", ["x"], ["y"], alpha="one"), "attribute is malformed"),
        (NODE("FusedConv", ["x", "x"], ["y"], activation="Sin"), "activation 'Sin' is not"),
        (NODE("MatMulNBits", ["x", "x", "x"], ["y"], K=4, N=4, bits=4), "'x' is no constant"),
        (NODE("SkipLayerNormalization", ["x", "x", "x"], ["y", "m"]), "output 1 .'m'. is not"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(models, node, message):
    model = models.make([node], {"x": [4, 4]}, {"y": [4, 4]}, imports=[(DOMAIN, 1)])
    with pytest.raises(FormatError, match=message):
        prepare(model)
