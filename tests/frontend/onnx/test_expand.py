"""Expand: axes that stay free beside a constant shape."""

import numpy as np
import pytest
from onnx import helper

import tbn_tvm
from tbn_tvm.frontend.onnx import prepare
from tbn_tvm.importing import import_model


@pytest.mark.parametrize(
    ("given", "shape"), [(["n", 3, 1], [1, 1, 4]), (["n", 1], [2, 1, 5]), (["n", 3], [1])]
)
def test_extents_of_one_keep_the_inputs(models, given, shape):
    model = models.make(
        [helper.make_node("Expand", ["x", "shape"], ["y"], "wide")],
        {"x": given},
        {"y": [None] * max(len(given), len(shape))},
        {"shape": np.asarray(shape, np.int64)},
    )
    x = np.random.default_rng(0).normal(size=[2, *given[1:]]).astype(np.float32)
    y = tbn_tvm.compile(import_model(prepare(model))).run(x)
    np.testing.assert_array_equal(y, x * np.ones(shape, np.float32))
