"""Operators that TVM's importer gets wrong are mended, or refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

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


def test_opaque_kernels_and_norms_compute_what_onnx_says(models):
    """Sorts and scatters come as one block each; a norm may be over all axes."""
    nodes = [
        NODE("TopK", ["x", "k"], ["largest", "where"], axis=-1),
        NODE("TopK", ["x", "k"], ["smallest", "there"], axis=0, largest=0),
        NODE("ScatterElements", ["x", "i", "u"], ["scattered"], axis=0),
        NODE("ScatterElements", ["x", "r", "u"], ["added"], axis=0, reduction="add"),
        NODE("GatherElements", ["x", "r"], ["gathered"], axis=0),
        NODE("ScatterND", ["x", "c", "u"], ["rows"]),
        NODE("GatherND", ["x", "c"], ["taken"]),
        NODE("RMSNormalization", ["x", "g"], ["over_all"], axis=0),
        NODE("RMSNormalization", ["x", "h"], ["over_rows"], epsilon=0.1),
    ]
    model = models.make(
        nodes,
        {"x": [3, 4], "u": [2, 4], "r": ("INT64", [2, 4])},
        {
            "largest": [3, 2],
            "where": ("INT64", [3, 2]),
            "smallest": [2, 4],
            "there": ("INT64", [2, 4]),
            "scattered": [3, 4],
            "added": [3, 4],
            "gathered": [2, 4],
            "rows": [3, 4],
            "taken": [2, 4],
            "over_all": [3, 4],
            "over_rows": [3, 4],
        },
        {
            "k": np.array([2]),
            "i": np.array([[1, 0, 2, -1], [0, -2, 1, 1]]),
            "c": np.array([[-1], [0]]),
            "g": np.linspace(0.5, 1.5, 12, dtype="f").reshape(3, 4),
            "h": np.linspace(-1, 1, 4, dtype="f"),
        },
        opset=23,
    )
    rng = np.random.default_rng(0)
    x, u = rng.standard_normal((3, 4)).astype("f"), rng.standard_normal((2, 4)).astype("f")
    r = np.array([[-3, 2, 0, 1], [1, 1, -1, -2]])
    results = evaluate(import_model(prepare(model)), [x, u, r])
    for ours, theirs in zip(results, models.expected(model, x=x, u=u, r=r), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "mean", "deviation", "tolerance"),
    [("f", 1000, 0.05, 0.01), ("d", 1000, 0.05, 1e-9), ("e", 100, 1, 5e-3)],
)
def test_norms_of_groups_and_instances_keep_a_deviation_much_below_the_mean(
    models, dtype, mean, deviation, tolerance
):
    """Against NumPy in float64: ONNX Runtime's groups are NaN. Sums are above what float16 has."""
    nodes = [
        NODE("GroupNormalization", ["x", "s", "b"], ["groups"], num_groups=2, epsilon=1e-4),
        NODE("InstanceNormalization", ["x", "s", "b"], ["instances"], epsilon=1e-4),
    ]
    kind = {"f": "FLOAT", "d": "DOUBLE", "e": "FLOAT16"}[dtype]
    s, b = np.linspace(-1, 2, 4, dtype=dtype), np.linspace(1, -2, 4, dtype=dtype)
    extents = (kind, ["n", 4, 32, 32])
    outputs = {"groups": extents, "instances": extents}
    model = models.make(nodes, {"x": extents}, outputs, {"s": s, "b": b}, opset=21)
    x = mean + deviation * np.random.default_rng(0).standard_normal((2, 4, 32, 32))
    x = x.astype(dtype)
    results = evaluate(import_model(prepare(model)), [x])
    for ours, groups in zip(results, (2, 4), strict=True):
        exact = x.astype("d").reshape(2, groups, -1)
        centred = exact - exact.mean(-1, keepdims=True)
        unit = centred / np.sqrt(exact.var(-1, keepdims=True) + 1e-4)
        expected = unit.reshape(x.shape) * s.reshape(4, 1, 1) + b.reshape(4, 1, 1)
        assert ours.dtype == x.dtype
        np.testing.assert_allclose(ours, expected, rtol=tolerance, atol=tolerance)


def test_indices_that_only_data_knows_reach_no_foreign_memory(models):
    model = models.make(
        [
            NODE("ScatterElements", ["x", "i", "x"], ["y"]),
            NODE("GatherElements", ["x", "i"], ["z"]),
        ],
        {"x": [2], "i": ("INT64", [2])},
        {"y": [2], "z": [2]},
    )
    x = np.array([1, 2], np.float32)
    y, z = evaluate(import_model(prepare(model)), [x, np.array([10**12, -(10**12)])])
    assert y.tolist() == [2, 1]
    assert z.tolist() == [2, 1]


@pytest.mark.parametrize(
    "values", [np.array([0.5, 2], "f"), np.array([0, 1]), np.array([5, 7], "i1")]
)
def test_one_hot_has_the_type_of_its_values(models, values):
    kind = {"f": "FLOAT", "l": "INT64", "b": "INT8"}[values.dtype.char]
    model = models.make(
        [
            NODE("OneHot", ["i", "d", "v"], ["last"]),
            NODE("OneHot", ["i", "d", "v"], ["first"], axis=0),
            NODE("OneHot", ["i", "d", "w"], ["given"], axis=-2),
        ],
        {"i": ("INT64", [2, 3]), "w": (kind, [2])},
        {"last": (kind, [2, 3, 4]), "first": (kind, [4, 2, 3]), "given": (kind, [2, 4, 3])},
        {"d": np.array([4]), "v": values},
    )
    feeds = {"i": np.array([[0, 3, -1], [-4, 4, -5]]), "w": values[::-1].copy()}
    results = evaluate(import_model(prepare(model)), list(feeds.values()))
    for ours, last in zip(results, (2, 0, 1), strict=True):
        on, off = (values[1], values[0]) if last != 1 else (values[0], values[1])
        index = np.where(feeds["i"] < 0, feeds["i"] + 4, feeds["i"])
        hit = np.moveaxis(index[..., None] == np.arange(4), -1, last)
        assert ours.dtype == values.dtype
        np.testing.assert_array_equal(ours, np.where(hit, on, off))


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
        (
            NODE("GatherND", ["x", "c"], ["y"]),
            [3, 4],
            [1, 4],
            {"c": np.array([[3]])},
            "index 3 along an axis of .3.",
        ),
        (
            NODE("GatherElements", ["x", "c"], ["y"]),
            ["n", 4],
            [1, 1],
            {"c": np.array([[3]])},
            "along an axis of free size",
        ),
        (
            NODE("GroupNormalization", ["x", "s", "s"], ["y"], num_groups=3),
            [1, 4, 2],
            [1, 4, 2],
            {"s": np.ones(4, "f")},
            "4 channels are not 3 groups of one size",
        ),
        (
            NODE("GroupNormalization", ["x", "s", "s"], ["y"], num_groups=2),
            [1, "c", 2],
            [1, "c", 2],
            {"s": np.ones(4, "f")},
            "groups of a free number of channels",
        ),
    ],
    ids=["training", "scales", "antialias", "roi", "index", "free", "groups", "channels"],
)
def test_uses_that_tvm_gets_wrong_are_refused(models, node, x, y, arrays, told):
    opset = 21 if node.op_type == "GroupNormalization" else 18
    model = models.make([node], {"x": x}, {"y": y}, arrays, opset=opset)
    with pytest.raises(FormatError, match=rf"\({node.op_type}\): .*{told}"):
        import_model(prepare(model))


@pytest.mark.parametrize("to", ["FLOAT8E4M3FN", "FLOAT8E5M2FNUZ", "INT4", "FLOAT4E2M1"])
def test_values_of_types_that_tvm_casts_wrongly_are_refused(models, to):
    """In between, too, where neither an input nor an output has the type."""
    number = getattr(TensorProto, to)
    nodes = [
        NODE("Cast", ["x"], ["narrow"], to=number),
        NODE("Cast", ["narrow"], ["y"], to=TensorProto.FLOAT),
    ]
    model = models.make(nodes, {"x": [3]}, {"y": [3]}, opset=23)
    with pytest.raises(FormatError, match=f"'narrow' is of {to[:4].lower()}.* expected one of"):
        import_model(prepare(model))
