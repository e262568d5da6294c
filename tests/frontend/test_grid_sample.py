"""PyTorch's grid_sample: every method, padding and meaning of corners, one element an axis too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import grid_sample

import tbn_tvm
from tbn_tvm.errors import TbnError


class Sample(torch.nn.Module):
    def __init__(self, *options):
        super().__init__()
        self.options = options

    def forward(self, x, grid):
        return grid_sample(x, grid, *self.options)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("method", "padding", "size"),
    [
        ("bilinear", "zeros", (5, 6)),
        ("nearest", "border", (5, 6)),
        ("bilinear", "reflection", (1, 4)),
        ("nearest", "reflection", (3, 2)),
        ("bicubic", "reflection", (1, 6)),
        ("bicubic", "reflection", (2, 3)),
        ("bilinear", "border", (2, 3, 4)),
        ("bilinear", "reflection", (2, 1, 4)),
    ],
)
def test_samples_are_pytorchs(method, padding, size, align_corners):
    torch.manual_seed(0)
    model = Sample(method, padding, align_corners)
    x, grid = torch.randn(2, 3, *size), 3 * torch.randn(2, *(4, 5, 3)[: len(size)], len(size))
    y = tbn_tvm.compile(torch.export.export(model, (x, grid))).run(x.numpy(), grid.numpy())
    expected = model(x.double(), grid.double()).numpy()
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
def test_half_precision_stays_half(method):
    torch.manual_seed(0)
    model = Sample(method, "zeros", False)
    x, grid = torch.randn(1, 3, 5, 6).half(), torch.randn(1, 4, 5, 2).half()
    y = tbn_tvm.compile(torch.export.export(model, (x, grid))).run(x.numpy(), grid.numpy())
    assert y.dtype == np.float16
    expected = model(x.double(), grid.double()).numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-3)


def test_cubic_reflection_over_a_free_size_is_refused():
    program = torch.export.export(
        Sample("bicubic", "reflection", False),
        (torch.randn(1, 1, 4, 6), torch.randn(1, 2, 2, 2)),
        dynamic_shapes=({3: torch.export.Dim("width", min=4, max=64)}, None),
    )
    with pytest.raises(TbnError, match="cubic sampling with reflection over axes of free size"):
        tbn_tvm.compile(program)
