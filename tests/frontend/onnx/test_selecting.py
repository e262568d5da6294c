"""Operators that select, and shapes, against ONNX Runtime; what cannot be planned is refused."""

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
CROP = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}
ALIGN = {"coordinate_transformation_mode": "align_corners"}


def agrees(models, model, **feeds):
    results = evaluate(import_model(prepare(model)), list(feeds.values()))
    for result, expected in zip(results, models.expected(model, **feeds), strict=True):
        assert result.dtype == expected.dtype
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_dropout_drops_nothing_and_says_so(models):
    nodes = [
        NODE("Dropout", ["x"], ["y", "kept"]),
        NODE("Dropout", ["x", "ratio", "off"], ["z"]),
    ]
    model = models.make(
        nodes,
        {"x": [2, 3]},
        {"y": [2, 3], "kept": ("BOOL", [2, 3]), "z": [2, 3]},
        {"ratio": np.array(0.9, np.float32), "off": np.array(False)},
    )
    agrees(models, model, x=np.arange(6, dtype=np.float32).reshape(2, 3))


def test_a_shape_is_an_output(models):
    nodes = [NODE("Shape", ["x"], ["shape"]), NODE("Relu", ["x"], ["y"])]
    model = models.make(nodes, {"x": [2, 3]}, {"shape": ("INT64", [2]), "y": [2, 3]})
    agrees(models, model, x=np.ones((2, 3), np.float32))


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "int32", "uint8"])
def test_the_greatest_of_every_sortable_type(models, dtype):
    kind = {"float64": "DOUBLE"}.get(dtype, dtype.upper())
    model = models.make(
        [NODE("TopK", ["x", "k"], ["y", "i"])],
        {"x": (kind, [2, 4])},
        {"y": (kind, [2, 2]), "i": ("INT64", [2, 2])},
        {"k": np.array([2])},
        opset=24,
    )
    x = np.array([[1, 7, 3, 5], [100, 2, 0, 120]], dtype)
    y, i = evaluate(import_model(prepare(model)), [x])
    np.testing.assert_array_equal(i, [[1, 3], [3, 0]])
    np.testing.assert_array_equal(y, np.take_along_axis(x, i, 1))


@pytest.mark.parametrize(
    ("names", "arrays", "attributes"),
    [
        (["", "f"], {"f": np.array([3, 2], np.float32)}, {"axes": [3, 2]}),
        (["", "", "n"], {"n": np.array([6, 5])}, {"axes": [2, -1], "mode": "linear"}),
        (
            ["r", "", "n"],
            {"r": np.array([0.2, 0.1, 0.8, 0.9], np.float32), "n": np.array([3, 5])},
            {
                "axes": [2, 3],
                "mode": "linear",
                "coordinate_transformation_mode": "tf_crop_and_resize",
            },
        ),
    ],
    ids=["scales", "sizes", "region"],
)
def test_resize_of_some_axes(models, names, arrays, attributes):
    model = models.make(
        [NODE("Resize", ["x", *names], ["y"], **attributes)],
        {"x": [1, 2, 4, 3]},
        {"y": [1, 2, None, None]},
        arrays,
        opset=19,
    )
    agrees(models, model, x=np.random.default_rng(0).standard_normal((1, 2, 4, 3), np.float32))


@pytest.mark.parametrize(
    ("node", "inputs", "output", "told"),
    [
        (
            NODE("NonMaxSuppression", ["b", "s"], ["y"]),
            {"b": [1, 6, 4], "s": [1, 1, 6]},
            ("INT64", [None, 3]),
            "how many boxes it selects depends on the data",
        ),
        (
            NODE("Dropout", ["x", "", "t"], ["y"]),
            {"x": [2], "t": ("BOOL", [])},
            [2],
            "training_mode is for training: expected a constant false",
        ),
        (
            NODE("MaxUnpool", ["x", "i", "n"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
            {"x": [1, 1, 2, 2], "i": ("INT64", [1, 1, 2, 2]), "n": ("INT64", [4])},
            [1, 1, 5, 5],
            "output_shape is not supported",
        ),
    ],
    ids=["boxes", "training", "unpooling"],
)
def test_what_cannot_be_planned_is_refused(models, node, inputs, output, told):
    model = models.make([node], inputs, {"y": output}, opset=23)
    with pytest.raises(FormatError, match=rf"\({node.op_type}\): .*{told}"):
        import_model(prepare(model))


def test_what_cannot_be_sorted_is_refused(models):
    model = models.make(
        [NODE("TopK", ["x", "k"], ["y", "i"])],
        {"x": ("UINT64", [4])},
        {"y": ("UINT64", [2]), "i": ("INT64", [2])},
        {"k": np.array([2])},
    )
    with pytest.raises(FormatError, match="uint64 cannot be sorted: cast them to one of float32, "):
        import_model(prepare(model))


def test_a_kept_ratio_is_refused(models):
    model = models.make(
        [NODE("Resize", ["x", "", "", "n"], ["y"], keep_aspect_ratio_policy="not_larger")],
        {"x": [1, 1, 4, 4]},
        {"y": [1, 1, None, None]},
        {"n": np.array([1, 1, 7, 8])},
        opset=19,
    )
    with pytest.raises(FormatError, match="keep_aspect_ratio_policy is not supported"):
        import_model(prepare(model))


def resizing(models, names, arrays, attributes, extents):
    return models.make(
        [NODE("Resize", ["x", *names], ["y"], **attributes)],
        {"x": extents},
        {"y": [None] * len(extents)},
        arrays,
        opset=19,
    )


def numbers(*values):
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("names", "arrays", "attributes", "shape"),
    [
        (["", "f"], {"f": numbers(1, 1, 0.1, 0.3)}, {"mode": "linear"}, (1, 1, 10, 10)),
        (["", "f"], {"f": numbers(1, 1, 1.1, 1 / 3)}, {"mode": "linear"}, (1, 1, 10, 9)),
        (["", "", "n"], {"n": np.array([1, 2, 1, 5])}, ALIGN, (1, 2, 4, 3)),
        (
            ["", "", "n"],
            {"n": np.array([1, 2, 1, 1])},
            {**ALIGN, "mode": "cubic"},
            (1, 2, 4, 3),
        ),
        (["", "f"], {"f": numbers(1, 1, 1, 2)}, {**ALIGN, "mode": "linear"}, (1, 2, 1, 3)),
        (
            ["", "", "n"],
            {"n": np.array([1, 3, 1])},
            {**ALIGN, "mode": "linear", "axes": [2, 3, 4]},
            (1, 2, 5, 4, 3),
        ),
        (
            ["r", "", "n"],
            {"r": numbers(0, 0, 0.2, 0.1, 1, 1, 0.7, 0.9), "n": np.array([1, 2, 1, 5])},
            CROP,
            (1, 2, 4, 3),
        ),
        (
            ["r", "f"],
            {"r": numbers(0, 0, 0, 0.1, 1, 1, 0.6, 1), "f": numbers(1, 1, 0.25, 2)},
            CROP,
            (1, 2, 4, 3),
        ),
    ],
    ids=["tenth", "third", "corner", "cubic", "kept", "volume", "region", "scaled region"],
)
def test_resize_to_one_element_and_by_inexact_scales(models, names, arrays, attributes, shape):
    model = resizing(models, names, arrays, attributes, list(shape))
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    (y,) = evaluate(import_model(prepare(model)), [x])
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    assert (y.dtype, y.shape) == (expected.dtype, expected.shape)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_sizes_of_some_axes_beside_a_free_batch(models, mode):
    arrays, attributes = {"n": np.array([3, 3])}, {"axes": [2, 3], "mode": mode}
    model = resizing(models, ["", "", "n"], arrays, attributes, ["b", 1, 4, 4])
    mod = import_model(prepare(model))
    for batch in (1, 3):
        x = np.random.default_rng(0).standard_normal((batch, 1, 4, 4), np.float32)
        (y,) = evaluate(mod, [x])
        (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_sizes_beside_a_computed_batch(models):
    nodes = [
        NODE("Shape", ["x"], ["leading"], end=2),
        NODE("Concat", ["leading", "n"], ["sizes"], axis=0),
        NODE("Resize", ["x", "", "", "sizes"], ["y"], mode="linear"),
    ]
    model = models.make(
        nodes, {"x": ["b", 1, 4, 4]}, {"y": ["b", 1, 3, 5]}, {"n": np.array([3, 5])}, opset=19
    )
    agrees(models, model, x=np.random.default_rng(0).standard_normal((2, 1, 4, 4), np.float32))


@pytest.mark.parametrize(
    ("names", "arrays", "attributes", "extents", "told"),
    [
        (
            ["r", "", "n"],
            {"r": numbers(0, 0.5, 0.2, 0.1, 1, 1, 0.8, 0.9), "n": np.array([1, 2, 3, 5])},
            CROP,
            [1, 2, 4, 3],
            "a region from 0.5 to 1 of axis 1: expected 0 to 1",
        ),
        (
            ["r", "", "n"],
            {"r": numbers(0, 0.1, 0.5, 0.9), "n": np.array([2, 5])},
            {**CROP, "axes": [0, 3]},
            [2, 2, 4, 3],
            "a region from 0 to 0.5 of axis 0: expected 0 to 1",
        ),
        (["", "", "n"], {"n": np.array([1, 2, 3, 5])}, CROP, [1, 2, 4, 3], "without a region"),
        (["", "", "n"], {"n": np.array([3])}, {"axes": [3]}, ["b", 1, "h", 4], "free size .h.:"),
        (
            ["", "", "n"],
            {"n": np.array([5, 1, 3, 3])},
            {},
            ["b", 1, 4, 4],
            "a size of 5 on axis 0 of b: expected the first two as they are",
        ),
        (["", "f"], {"f": numbers(2, 1, 1, 1)}, {}, [1, 1, 4, 4], "a scale of 2.0 on axis 0"),
        (["", "f"], {"f": numbers(1, 1, 0.7, 1)}, {}, [1, 1, 10, 4], "gives no whole size"),
        (["", "f"], {"f": numbers(1, 1, np.inf, 1)}, {}, [1, 1, 4, 4], r"\(Resize\): .*"),
    ],
    ids=["region", "region of some", "no region", "free", "batch", "scale", "below", "infinite"],
)
def test_sizes_that_tvm_gets_wrong_are_refused(models, names, arrays, attributes, extents, told):
    model = resizing(models, names, arrays, attributes, extents)
    with pytest.raises(FormatError, match=told):
        import_model(prepare(model))
