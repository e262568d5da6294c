"""GridSample with reflection, which TVM's kernel takes minutes to compile for, and by type."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from onnx import helper

from tbn_tvm.errors import FormatError
from tbn_tvm.evaluate import evaluate
from tbn_tvm.frontend.onnx import prepare
from tbn_tvm.importing import import_model


def sampling(models, mode, size, opset=22, dtypes=("FLOAT", "FLOAT"), **attributes):
    node = helper.make_node("GridSample", ["x", "grid"], ["y"], mode=mode, **attributes)
    points = (4, 3, 5)[: len(size)]
    return models.make(
        [node],
        {"x": (dtypes[0], [1, 2, *size]), "grid": (dtypes[1], [1, *points, len(size)])},
        {"y": (dtypes[0], [1, 2, *points])},
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
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, expected.numpy(), rtol=1e-5, atol=1e-5)


def test_cubic_over_three_axes_is_refused(models):
    model = sampling(models, "cubic", (2, 3, 4))
    with pytest.raises(FormatError, match=r"\(GridSample\): .*cubic sampling over three axes"):
        import_model(prepare(model))


@pytest.mark.parametrize("padding", ["zeros", "reflection"])
@pytest.mark.parametrize(
    ("mode", "dtype", "grid_dtype", "rtol"),
    [
        ("linear", "float16", "float16", 1e-3),
        ("cubic", "float16", "float32", 1e-3),
        ("linear", "bfloat16", "float32", 8e-3),
        ("nearest", "bfloat16", "float16", 0),
        ("linear", "float32", "float16", 1e-5),
        ("linear", "float32", "float64", 1e-5),
        ("linear", "float64", "float32", 1e-12),
        ("nearest", "uint8", "float32", 0),
        ("nearest", "int64", "float16", 0),
    ],
)
def test_the_result_has_the_type_of_the_data(models, mode, dtype, grid_dtype, rtol, padding):
    names = {"float32": "FLOAT", "float64": "DOUBLE"}
    kinds = [names.get(name, name.upper()) for name in (dtype, grid_dtype)]
    model = sampling(models, mode, (5, 6), dtypes=kinds, padding_mode=padding)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 200, (1, 2, 5, 6)).astype(
        ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    )
    grid = rng.uniform(-1.5, 1.5, (1, 4, 3, 2)).astype(grid_dtype)
    (y,) = evaluate(import_model(prepare(model)), [x, grid])
    assert y.dtype == x.dtype
    method = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    exact = (torch.from_numpy(a.astype(np.float64)) for a in (x, grid))
    expected = torch.nn.functional.grid_sample(*exact, method, padding, False).numpy()
    np.testing.assert_allclose(y.astype(np.float64), expected, rtol=rtol, atol=200 * rtol)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("dtype", ["UINT8", "INT32", "BOOL"])
def test_integers_between_which_nothing_lies_are_refused(models, mode, dtype):
    model = sampling(models, mode, (5, 6), dtypes=(dtype, "FLOAT"))
    with pytest.raises(FormatError, match=f"sampling of {dtype.lower()}: cast it to float32"):
        import_model(prepare(model))


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ({"mode": "area"}, "mode 'area': expected one of bilinear, nearest, bicubic"),
        (
            {"mode": "linear", "padding_mode": "wrap"},
            "padding 'wrap': expected one of zeros, border, reflection",
        ),
    ],
)
def test_what_is_unknown_is_refused(models, attributes, told):
    model = sampling(models, size=(5, 6), **attributes)
    with pytest.raises(FormatError, match=rf"\(GridSample\): .*{told}"):
        import_model(prepare(model))
