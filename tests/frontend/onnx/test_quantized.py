"""Quantised operators give the integers that ONNX's reference evaluator gives."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tbn_tvm.errors import FormatError
from tbn_tvm.evaluate import evaluate
from tbn_tvm.frontend.onnx import load_onnx, prepare
from tbn_tvm.frontend.onnx.report import report_initialisers
from tbn_tvm.importing import import_model
from tbn_tvm.micro.lower import lower_model
from tbn_tvm.targets import load_board
from tbn_tvm.testing.fleet import run_fleet

NODE = helper.make_node
TYPES = {"b": "INT8", "B": "UINT8", "h": "INT16", "H": "UINT16", "i": "INT32", "f": "FLOAT"}
TYPES |= {"e": "FLOAT16"}


def built(models, nodes, arrays: dict, run: list[str], outputs: dict, opset: int = 23, free=False):
    """A model of which ``run`` are inputs, of a free first axis where wanted."""

    def given(name):
        shape: list = list(arrays[name].shape)
        return TYPES[arrays[name].dtype.char], ["n", *shape[1:]] if free else shape

    return models.make(
        nodes,
        {name: given(name) for name in run},
        outputs,
        {name: array for name, array in arrays.items() if name not in run},
        opset=opset,
    )


def agrees(models, nodes, arrays, run, outputs, **options):
    model = built(models, nodes, arrays, run, outputs, **options)
    feeds = {name: arrays[name] for name in run}
    expected = ReferenceEvaluator(model).run(None, feeds)
    results = evaluate(import_model(prepare(model)), list(feeds.values()))
    for ours, theirs in zip(results, expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    return model


def integers(rng, dtype: str, *shape):
    held = np.iinfo(dtype)
    return rng.integers(held.min, held.max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("opset", [19, 21, 25])
def test_numbers_are_quantised_and_back(models, opset):
    """Ties, what saturates, a scale for each channel, and by blocks."""
    rng = np.random.default_rng(0)
    x = 4 * rng.standard_normal((4, 6, 5)).astype("f")
    x[0, 0] = [0.5, 1.5, -0.5, 1e6, -1e6]
    arrays = {
        "x": x,
        "one": np.float32(1),
        "many": rng.uniform(0.01, 0.1, 6).astype("f"),
        "z8": np.int8(-3),
        "zs": integers(rng, "B", 6),
        "some": rng.uniform(0.01, 0.1, (4, 2, 5)).astype("f"),
        "zb": integers(rng, "b", 4, 2, 5),
    }
    nodes = [
        NODE("QuantizeLinear", ["x", "one", "z8"], ["a"]),
        NODE("DequantizeLinear", ["a", "one", "z8"], ["da"]),
        NODE("QuantizeLinear", ["x", "many", "zs"], ["b"]),
        NODE("DequantizeLinear", ["b", "many", "zs"], ["db"], axis=-2),
        NODE("QuantizeLinear", ["x", "one"], ["c"]),
    ]
    outputs = {
        "a": ("INT8", ["n", 6, 5]),
        "b": ("UINT8", ["n", 6, 5]),
        "c": ("UINT8", list(x.shape)),
    }
    outputs |= {"da": list(x.shape), "db": list(x.shape)}
    if opset >= 21:
        arrays |= {"z16": integers(rng, "H", 6)}
        nodes += [
            NODE("QuantizeLinear", ["x", "some", "zb"], ["d"], block_size=4),
            NODE("DequantizeLinear", ["d", "some", "zb"], ["dd"], block_size=4),
            NODE("QuantizeLinear", ["x", "many", "z16"], ["e"]),
            NODE("DequantizeLinear", ["e", "many", "z16"], ["de"]),
        ]
        outputs |= {"d": ("INT8", list(x.shape)), "e": ("UINT16", list(x.shape))}
        outputs |= {"dd": list(x.shape), "de": list(x.shape)}
    agrees(models, nodes, arrays, ["x"], outputs, opset=opset)
    # Scales that only run time knows.
    agrees(models, nodes, arrays, list(arrays), outputs, opset=opset)


def test_16_bit_floats_are_quantised_and_back(models):
    x = (50 * np.random.default_rng(0).standard_normal((3, 40))).astype("e")
    arrays = {"x": x, "s": np.float16(0.03), "z": np.uint8(120)}
    nodes = [NODE("QuantizeLinear", ["x", "s", "z"], ["q"])]
    nodes.append(NODE("DequantizeLinear", ["q", "s", "z"], ["y"]))
    outputs = {"q": ("UINT8", ["n", 40]), "y": ("FLOAT16", ["n", 40])}
    agrees(models, nodes, arrays, ["x"], outputs, free=True)


@pytest.mark.parametrize("x", [[-1.0, 2, 3, 0.7], [2.0, 3, 4, 9], [-3.0, -1, -2, -8], [0.0] * 4])
def test_a_range_is_taken_from_the_data(models, x):
    nodes = [NODE("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])]
    outputs = {"q": ("UINT8", ["n"]), "s": [], "z": ("UINT8", [])}
    agrees(models, nodes, {"x": np.array(x, "f")}, ["x"], outputs, free=True)


@pytest.mark.parametrize(("left", "right"), ["bB", "BB", "Bb"])
def test_products_of_integers(models, left, right):
    rng = np.random.default_rng(0)
    arrays = {
        "a": integers(rng, left, 2, 3, 40),
        "b": integers(rng, right, 40, 5),
        "za": integers(rng, left),
        "zb": integers(rng, right),
        "zs": integers(rng, right, 5),
        "sa": np.float32(0.021),
        "sb": np.float32(0.017),
        "ss": rng.uniform(0.01, 0.02, 5).astype("f"),
        "sy": np.float32(1.3),
        "zy": integers(rng, left),
    }
    each = TYPES[left]
    nodes = [
        NODE("MatMulInteger", ["a", "b"], ["m"]),
        NODE("MatMulInteger", ["a", "b", "za", "zb"], ["mz"]),
        NODE("MatMulInteger", ["a", "b", "", "zs"], ["ms"]),
        NODE("QLinearMatMul", ["a", "sa", "za", "b", "sb", "zb", "sy", "zy"], ["q"]),
        NODE("QLinearMatMul", ["a", "sa", "za", "b", "ss", "zs", "sy", "zy"], ["qs"]),
    ]
    shape = ["n", 3, 5]
    outputs = {name: ("INT32", shape) for name in ("m", "mz", "ms")}
    outputs |= {name: (each, shape) for name in ("q", "qs")}
    agrees(models, nodes, arrays, ["a"], outputs, free=True)
    agrees(models, nodes[1:2], {**arrays, "zs": arrays["zs"]}, ["a", "b"], {"mz": ("INT32", shape)})


@pytest.mark.parametrize(
    "attrs",
    [
        {"pads": [1, 0, 2, 1], "strides": [2, 1]},
        {"auto_pad": "SAME_LOWER", "dilations": [2, 1]},
        {"auto_pad": "VALID", "group": 2},
    ],
)
def test_convolutions_of_integers(models, attrs):
    """What is padded is the zero point."""
    rng = np.random.default_rng(0)
    arrays = {
        "x": integers(rng, "B", 2, 4, 7, 6),
        "w": integers(rng, "b", 6, 4 // attrs.get("group", 1), 3, 2),
        "zx": integers(rng, "B"),
        "zw": np.int8(3),
        "sx": np.float32(0.02),
        "sw": rng.uniform(0.01, 0.02, 6).astype("f"),
        "zws": np.zeros(6, "b"),
        "sy": np.float32(1.1),
        "zy": np.uint8(100),
        "bias": integers(rng, "h", 6).astype("i"),
    }
    linear = ["x", "sx", "zx", "w", "sw", "zws", "sy", "zy"]
    nodes = [
        NODE("ConvInteger", ["x", "w", "zx", "zw"], ["c"], **attrs),
        NODE("QLinearConv", linear, ["q"], **attrs),
        NODE("QLinearConv", [*linear, "bias"], ["qb"], **attrs),
    ]
    outputs = {"c": ("INT32", ["n", 6, "h", "w"])}
    outputs |= {name: ("UINT8", ["n", 6, "h", "w"]) for name in ("q", "qb")}
    agrees(models, nodes, arrays, ["x"], outputs, free=True)


NARROW = ["INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1"]
NARROW += ["FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "INT8", "UINT16"]


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("external", [False, True])
def test_stored_constants_of_narrow_types_are_dequantised(models, kind, external, tmp_path):
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.1, 1, (7, 2)).astype("f")
    nodes = [
        NODE("DequantizeLinear", ["w", "s"], ["d"], axis=1, block_size=3),
        NODE("MatMul", ["x", "d"], ["y"]),
    ]
    model = models.make(nodes, {"x": ["n", 7]}, {"y": ["n", 5]}, {"s": scale}, opset=25)
    number = getattr(TensorProto, kind)
    dtype = helper.tensor_dtype_to_np_dtype(number)
    held = rng.integers(0, 4, (7, 5)).astype("f").astype(dtype)
    if kind.startswith(("INT", "FLOAT")):
        held[0] = np.array(-1, "f").astype(dtype)
    tensor = numpy_helper.from_array(held, "w")
    assert tensor.data_type == number
    model.graph.initializer.append(tensor)
    x = rng.standard_normal((2, 7)).astype("f")
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    path = tmp_path / "m.onnx"
    onnx.save(
        model,
        path,
        save_as_external_data=external,
        location="weights" if external else None,
        size_threshold=0,
    )
    (result,) = evaluate(import_model(load_onnx(path)), [x])
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["INT4", "INT8"])
def test_a_tiled_weight_is_found_behind_its_dequantisation(models, kind):
    signs = np.sign(models.tiled_weight((16, 32), p=4).expand())
    scale = np.repeat(np.linspace(0.5, 2, 4, dtype="f"), 4)[:, None]
    nodes = [
        NODE("DequantizeLinear", ["w", "s"], ["d"], axis=1, block_size=32),
        NODE("Transpose", ["d"], ["t"], perm=[1, 0]),
        NODE("MatMul", ["x", "t"], ["y"]),
    ]
    model = models.make(nodes, {"x": ["n", 32]}, {"y": ["n", 16]}, {"s": scale}, opset=21)
    dtype = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, kind))
    model.graph.initializer.append(numpy_helper.from_array(signs.astype(dtype), "w"))
    prepared = prepare(model)
    rows = {r.name: r for r in report_initialisers(prepared.graph, prepared.initialisers)}
    assert rows["w"].tiled and rows["w"].dtype == kind.lower()
    assert rows["s"].reason == "folded into 'w', which is tiled"
    imported = import_model(prepared)
    assert imported.layers[0].p is not None
    x = np.random.default_rng(0).standard_normal((2, 32)).astype("f")
    (result,) = evaluate(imported, [x])
    np.testing.assert_allclose(result, x @ (signs * scale).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("opset", [17, 18, 19])
def test_a_tiled_weight_is_found_as_quantisers_write_it(models, opset):
    """One scale and zero point for all of it, in the opsets before that of newer types."""
    signs = np.sign(models.tiled_weight((16, 32), p=4).expand())
    levels = np.repeat([127, 12, 45, 1], 4)[:, None]
    scale = np.float32(0.02)
    arrays = {"w": (signs * levels).astype("int8"), "s": scale, "z": np.int8(0)}
    nodes = [
        NODE("DequantizeLinear", ["w", "s", "z"], ["d"]),
        NODE("Gemm", ["x", "d"], ["y"], transB=1),
    ]
    model = models.make(nodes, {"x": ["n", 32]}, {"y": ["n", 16]}, arrays, opset=opset)
    imported = import_model(prepare(model))
    assert imported.layers[0].p == 4
    x = np.random.default_rng(0).standard_normal((2, 32)).astype("f")
    (result,) = evaluate(imported, [x])
    np.testing.assert_allclose(result, x @ (signs * levels * scale).T, rtol=1e-4, atol=1e-4)


@pytest.mark.emulator
def test_boards_give_the_same_integers(models, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "x": (20 * rng.standard_normal((1, 4, 6, 6))).astype("f"),
        "w": integers(rng, "b", 6, 4, 3, 3),
        "m": integers(rng, "b", 6 * 36, 7),
        "s": np.float32(0.25),
        "t": np.float32(40),
        "z": np.uint8(111),
        "zw": np.int8(0),
        "shape": np.array([0, -1]),
    }
    nodes = [
        NODE("QuantizeLinear", ["x", "s", "z"], ["q"]),
        NODE("QLinearConv", ["q", "s", "z", "w", "s", "zw", "t", "z"], ["c"], pads=[1, 1, 1, 1]),
        NODE("Reshape", ["c", "shape"], ["r"]),
        NODE("QLinearMatMul", ["r", "t", "z", "m", "s", "zw", "t", "z"], ["y"]),
    ]
    outputs = {"c": ("UINT8", [1, 6, 6, 6]), "y": ("UINT8", [1, 7])}
    model = agrees(models, nodes, arrays, ["x"], outputs)
    expected = ReferenceEvaluator(model).run(None, {"x": arrays["x"]})
    board = load_board("mps2-an386")
    lowered = lower_model(import_model(prepare(model), name="quantised"), board)
    (results,) = run_fleet([lowered], [[arrays["x"]]], board, tmp_path)
    for ours, theirs in zip(results, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_is_not_supported_is_refused_by_name(models):
    x = np.zeros((2, 6), "f")
    arrays = {"x": x, "s": np.ones(5, "f")}
    nodes = [NODE("QuantizeLinear", ["x", "s"], ["y"])]
    with pytest.raises(FormatError, match=r"a scale of shape \[5\] along axis 1 of \[2, 6\]"):
        import_model(prepare(built(models, nodes, arrays, ["x"], {"y": ("UINT8", [2, 6])})))
    nodes = [NODE("QuantizeLinear", ["x", "one"], ["y"], output_dtype=TensorProto.INT4)]
    arrays = {"x": x, "one": np.float32(1)}
    with pytest.raises(FormatError, match="int4"):
        import_model(prepare(built(models, nodes, arrays, ["x"], {"y": ("INT4", [2, 6])})))
