"""Elements that move, against ONNX's definitions."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

import tbn_tvm
from tbn_tvm.errors import FormatError, TbnError
from tbn_tvm.evaluate import evaluate
from tbn_tvm.frontend.onnx import prepare
from tbn_tvm.importing import import_model

NODE = helper.make_node
RNG = np.random.default_rng(0)
KINDS = {"float32": "FLOAT", "float64": "DOUBLE"}


def agrees(models, nodes, feeds, outputs, arrays=None, opset=26):
    """Outputs map names to a dtype and the number of axes."""
    inputs = {n: (KINDS.get(str(a.dtype), str(a.dtype).upper()), a.shape) for n, a in feeds.items()}
    shown = {n: (KINDS.get(t, t.upper()), [None] * rank) for n, (t, rank) in outputs.items()}
    model = models.make(nodes, inputs, shown, arrays, opset=opset)
    results = evaluate(import_model(prepare(model)), list(feeds.values()))
    expected = ReferenceEvaluator(model).run(None, feeds)
    for name, result, value in zip(outputs, results, expected, strict=True):
        assert (result.dtype, result.shape) == (value.dtype, value.shape), name
        np.testing.assert_allclose(result, value, rtol=1e-6, atol=1e-6, err_msg=name)


def test_the_middle_and_blocks(models):
    x = RNG.standard_normal((1, 2, 5, 4)).astype(np.float32)
    nodes = [
        NODE("CenterCropPad", ["x", "shape"], ["middle"], axes=[-1, 2]),
        NODE("CenterCropPad", ["x", "whole"], ["odd"]),
        NODE("SpaceToDepth", ["odd"], ["dcr"], blocksize=3),
        NODE("SpaceToDepth", ["odd"], ["crd"], blocksize=3, mode="CRD"),
    ]
    arrays = {"shape": np.array([7, 2]), "whole": np.array([1, 5, 6, 3])}
    outputs = ("middle", "odd", "dcr", "crd")

    def model_of(count: int, opset: int):
        shown = {name: [None] * 4 for name in outputs[:count]}
        return models.make(nodes[:count], {"x": list(x.shape)}, shown, arrays, opset=opset)

    results = evaluate(import_model(prepare(model_of(4, 28))), [x])
    expected = ReferenceEvaluator(model_of(3, 20)).run(None, {"x": x})
    # ONNX's evaluator does not know the other mode.
    odd = expected[1]
    n, channels, height, width = odd.shape
    split = odd.reshape(n, channels, height // 3, 3, width // 3, 3)
    blocks = split.transpose(0, 1, 3, 5, 2, 4).reshape(n, 9 * channels, height // 3, width // 3)
    for result, value in zip(results, [*expected, blocks], strict=True):
        assert result.shape == value.shape
        np.testing.assert_array_equal(result, value)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("time", [0, 1])
def test_sequences_back_to_front(models, time, constant):
    x = RNG.standard_normal((3, 4, 2) if time == 1 else (4, 3, 2)).astype(np.float32)
    lengths = np.array([4, 1, 3])
    node = NODE("ReverseSequence", ["x", "n"], ["y"], time_axis=time, batch_axis=1 - time)
    feeds = {"x": x} if constant else {"x": x, "n": lengths}
    arrays = {"n": lengths} if constant else {}
    agrees(models, [node], feeds, {"y": ("float32", 3)}, arrays)


@pytest.mark.parametrize(
    ("image", "block", "attributes", "columns"),
    [
        ([5, 4], [2, 3], {}, 8),
        ([5, 5], [2, 3], {"pads": [0, 1, 1, 0], "strides": [2, 1], "dilations": [1, 2]}, 6),
        ([4, 3, 3], [1, 2, 2], {"strides": [3, 1, 1]}, 8),
    ],
    ids=["plain", "strided", "volume"],
)
def test_columns_become_an_image(models, image, block, attributes, columns):
    x = RNG.standard_normal((2, 3 * int(np.prod(block)), columns)).astype(np.float32)
    node = NODE("Col2Im", ["x", "image", "block"], ["y"], **attributes)
    arrays = {"image": np.array(image), "block": np.array(block)}
    agrees(models, [node], {"x": x}, {"y": ("float32", 2 + len(image))}, arrays)


def test_caches_are_written_from_a_place_on(models):
    cache = RNG.standard_normal((2, 3, 5, 4)).astype(np.float32)
    update = RNG.standard_normal((2, 3, 2, 4)).astype(np.float32)
    nodes = [
        NODE("TensorScatter", ["c", "u"], ["front"]),
        NODE("TensorScatter", ["c", "u", "n"], ["there"], axis=2),
        NODE("TensorScatter", ["c", "u", "m"], ["around"], mode="circular"),
    ]
    feeds = {"c": cache, "u": update, "n": np.array([3, 0]), "m": np.array([4, 7])}
    agrees(models, nodes, feeds, dict.fromkeys(("front", "there", "around"), ("float32", 4)))


def test_bits_as_another_type(models):
    x = np.array([0.0, -0.0, 1.5, np.inf], np.float32)
    nodes = [
        NODE("BitCast", ["x"], ["i"], to=6),
        NODE("BitCast", ["i"], ["same"], to=1),
        NODE("BitCast", ["x"], ["u"], to=12),
        NODE("BitCast", ["b"], ["n"], to=3),
    ]
    feeds = {"x": x, "b": np.array([True, False])}
    outputs = {"i": ("int32", 1), "same": ("float32", 1), "u": ("uint32", 1), "n": ("int8", 1)}
    agrees(models, nodes, feeds, outputs)


def test_bits_as_another_type_have_no_form_in_c(models):
    model = models.make(
        [NODE("BitCast", ["x"], ["y"], to=6)], {"x": [2]}, {"y": ("INT32", [2])}, opset=26
    )
    with pytest.raises(TbnError, match=r"no kernel for bare metal .it reads bits as another type"):
        tbn_tvm.compile(import_model(prepare(model)), "mps2-an386", name="net")


@pytest.mark.parametrize(
    ("node", "x", "arrays", "told"),
    [
        (
            NODE("CenterCropPad", ["x", "s"], ["y"], axes=[0]),
            [2, 3],
            {"s": np.array([0])},
            "a size for each, once",
        ),
        (NODE("SpaceToDepth", ["x"], ["y"], blocksize=2), [1, 1, 4, 3], {}, "do not tile 4 by 3"),
        (
            NODE("ReverseSequence", ["x", "n"], ["y"]),
            [3, 2],
            {"n": np.array([4, 1])},
            r"lengths \[4, 1\] of",
        ),
        (
            NODE("TensorScatter", ["x", "u"], ["y"], axis=1),
            [2, 2],
            {"u": np.zeros((2, 3), np.float32)},
            "an update of 3 into a cache of 2",
        ),
        (
            NODE("Col2Im", ["x", "i", "b"], ["y"]),
            [1, 5, 4],
            {"i": np.array([3, 3]), "b": np.array([2, 2])},
            "5 rows and 4 columns",
        ),
    ],
    ids=["sizes", "blocks", "lengths", "update", "columns"],
)
def test_what_does_not_fit_is_refused(models, node, x, arrays, told):
    rank = 4 if node.op_type == "Col2Im" else len(x)
    model = models.make([node], {"x": x}, {"y": [None] * rank}, arrays, opset=26)
    with pytest.raises(FormatError, match=told):
        import_model(prepare(model))
