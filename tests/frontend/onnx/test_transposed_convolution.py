"""Transposed convolutions to an output of a given size, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from tbn_tvm.errors import FormatError
from tbn_tvm.evaluate import evaluate
from tbn_tvm.frontend.onnx import prepare
from tbn_tvm.importing import import_model


def model_of(models, size, **attributes):
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], output_shape=size, **attributes)
    w = np.random.default_rng(0).standard_normal((2, 3, 3, 3)).astype(np.float32)
    return models.make([node], {"x": [1, 2, 4, 3]}, {"y": [1, 3, *size]}, {"w": w})


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("size", [[9, 7], [10, 8], [7, 5]], ids=["reached", "more", "less"])
def test_the_output_has_the_size_that_is_asked_for(models, size, auto_pad):
    model = model_of(models, size, strides=[2, 2], auto_pad=auto_pad)
    x = np.random.default_rng(1).standard_normal((1, 2, 4, 3)).astype(np.float32)
    (y,) = evaluate(import_model(prepare(model)), [x])
    np.testing.assert_allclose(y, models.expected(model, x=x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "told"),
    [([8, 7], "an odd padding of 1 on axis 2"), ([9, 9], "is 2 more on axis 3 than the kernel")],
    ids=["odd", "far"],
)
def test_sizes_that_are_reached_in_several_ways_are_refused(models, size, told):
    with pytest.raises(FormatError, match=told):
        import_model(prepare(model_of(models, size, strides=[2, 2])))
