"""RotaryEmbedding against ONNX's definition."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from tbn_tvm.errors import FormatError
from tbn_tvm.evaluate import evaluate
from tbn_tvm.frontend.onnx import prepare
from tbn_tvm.importing import import_model

RNG = np.random.default_rng(0)


def numbers(*shape, dtype="float32"):
    return RNG.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("turned", [0, 4])
@pytest.mark.parametrize("flat", [False, True], ids=["4-D", "3-D"])
def test_pairs_are_turned(models, flat, turned, interleaved):
    dtype = "float16" if flat else "float32"
    kind = {"float16": "FLOAT16", "float32": "FLOAT"}[dtype]
    attributes = {"interleaved": interleaved, "rotary_embedding_dim": turned}
    width = (turned or 6) // 2
    x = numbers(2, 3, 5, 6, dtype=dtype)
    cos, sin = numbers(7, width, dtype=dtype), numbers(7, width, dtype=dtype)
    places = np.array([[0, 1, 2, 3, 4], [2, 3, 4, 5, 6]])
    feeds = {"x": x, "cos": cos, "sin": sin, "places": places}
    if flat:
        feeds["x"] = x.transpose(0, 2, 1, 3).reshape(2, 5, 18)
        attributes["num_heads"] = 3
    if interleaved:
        # As many angles as there are rows, one set an example.
        feeds |= {"cos": cos[places], "sin": sin[places]}
        feeds.pop("places")
    inputs = {n: ("INT64" if n == "places" else kind, list(a.shape)) for n, a in feeds.items()}
    node = helper.make_node("RotaryEmbedding", list(feeds), ["y"], **attributes)
    model = models.make([node], inputs, {"y": inputs["x"]}, opset=23)
    (y,) = evaluate(import_model(prepare(model)), list(feeds.values()))
    (expected,) = ReferenceEvaluator(model).run(None, feeds)
    assert (y.dtype, y.shape) == (expected.dtype, expected.shape)
    close = 4e-3 if flat else 1e-5
    np.testing.assert_allclose(y.astype("f"), expected.astype("f"), rtol=close, atol=close)


@pytest.mark.parametrize(
    ("x", "cache", "attributes", "told"),
    [
        ([1, 2, 9], [1, 2, 2], {"num_heads": 2}, "a width of 9 in 2 heads"),
        ([1, 1, 2, 4], [1, 2, 3], {}, "a cache of width 3: expected 2"),
        ([1, 1, 2, 4], [2, 2], {}, "a cache of 2 axes"),
        ([1, 1, 2, 5], [1, 2, 2], {}, "5 elements to turn"),
    ],
    ids=["heads", "width", "axes", "odd"],
)
def test_what_does_not_fit_is_refused(models, x, cache, attributes, told):
    node = helper.make_node("RotaryEmbedding", ["x", "c", "c"], ["y"], **attributes)
    model = models.make([node], {"x": x, "c": cache}, {"y": x}, opset=23)
    with pytest.raises(FormatError, match=rf"\(RotaryEmbedding\): .*{told}"):
        import_model(prepare(model))
