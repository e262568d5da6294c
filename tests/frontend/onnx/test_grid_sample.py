"""GridSample with reflection, which TVM's kernel takes minutes to compile for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import helper

from tbn_tvm.errors import FormatError
from tbn_tvm.evaluate import evaluate
from tbn_tvm.frontend.onnx import prepare
from tbn_tvm.importing import import_model


def sampling(models, mode, size, opset=22, **attributes):
    node = helper.make_node("GridSample", ["x", "grid"], ["y"], mode=mode, **attributes)
    points = (4, 3, 5)[: len(size)]
    return models.make(
        [node],
        {"x": [1, 2, *size], "grid": [1, *points, len(size)]},
        {"y": [1, 2, *points]},
        opset=opset,
    )


@pytest.mark.parametrize("align_corners", [0, 1])
@pytest.mark.parametrize(
    ("mode", "opset", "size"),
    [
        ("bilinear", 17, (5, 6)),
        ("nearest", 20, (1, 3)),
        ("cubic", 20, (4, 2)),
        ("linear", 22, (2, 3, 4)),
    ],
)
def test_reflection(models, mode, opset, size, align_corners):
    model = sampling(
        models, mode, size, opset, padding_mode="reflection", align_corners=align_corners
    )
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 2, *size), np.float32)
    grid = 3 * rng.standard_normal((1, *(4, 3, 5)[: len(size)], len(size)), np.float32)
    (y,) = evaluate(import_model(prepare(model)), [x, grid])
    method = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    exact = (torch.from_numpy(a).double() for a in (x, grid))
    expected = torch.nn.functional.grid_sample(*exact, method, "reflection", bool(align_corners))
    np.testing.assert_allclose(y, expected.numpy(), rtol=1e-5, atol=1e-5)


def test_cubic_over_three_axes_is_refused(models):
    model = sampling(models, "cubic", (2, 3, 4))
    with pytest.raises(FormatError, match=r"\(GridSample\): .*cubic sampling over three axes"):
        import_model(prepare(model))
