"""Adaptive max pooling: windows of one size, of two, and fewer elements than windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d

import tbn_tvm
from tbn_tvm.errors import TbnError


class Pool(torch.nn.Module):
    def __init__(self, pool, windows, **options):
        super().__init__()
        self.pool, self.windows, self.options = pool, windows, options

    def forward(self, x):
        result = self.pool(x, self.windows, **self.options)
        return result[1] if isinstance(result, tuple) else result


@pytest.mark.parametrize(
    ("pool", "shape", "windows"),
    [
        pytest.param(adaptive_max_pool2d, (2, 3, 8, 6), (4, 2), id="whole"),
        pytest.param(adaptive_max_pool2d, (2, 3, 7, 10), (3, 4), id="not whole"),
        pytest.param(adaptive_max_pool2d, (2, 3, 8, 5), 1, id="all"),
        pytest.param(adaptive_max_pool2d, (3, 4, 7), (6, None), id="no batch, an axis kept"),
        pytest.param(adaptive_max_pool1d, (2, 3, 5), 8, id="more windows than elements"),
        pytest.param(adaptive_max_pool3d, (1, 2, 4, 5, 6), (2, 3, 4), id="three axes"),
    ],
)
def test_the_greatest_of_each_window(pool, shape, windows):
    torch.manual_seed(0)
    x = torch.randn(shape) - 5
    model = Pool(pool, windows)
    artifact = tbn_tvm.compile(torch.export.export(model, (x,)))
    np.testing.assert_array_equal(artifact.run(x.numpy()), model(x).numpy())


def test_any_batch():
    model, batch = Pool(adaptive_max_pool2d, (3, 2)), torch.export.Dim("batch")
    program = torch.export.export(model, (torch.randn(2, 3, 7, 4),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 3, 7, 4)
    np.testing.assert_array_equal(tbn_tvm.compile(program).run(x.numpy()), model(x).numpy())


def test_indices_are_refused():
    program = torch.export.export(
        Pool(adaptive_max_pool2d, 2, return_indices=True), (torch.randn(1, 1, 4, 4),)
    )
    with pytest.raises(TbnError, match=r"adaptive_max_pool2d: .*return_indices=False"):
        tbn_tvm.compile(program)


def test_a_free_size_is_refused():
    program = torch.export.export(
        Pool(adaptive_max_pool2d, 2),
        (torch.randn(1, 1, 4, 6),),
        dynamic_shapes=({3: torch.export.Dim("width", min=4, max=64)},),
    )
    with pytest.raises(TbnError, match="free size: export the model with those axes fixed"):
        tbn_tvm.compile(program)


@pytest.mark.parametrize("windows", [(0, 2), (2, 0), (0, 0)])
def test_no_windows_are_refused(windows):
    program = torch.export.export(Pool(adaptive_max_pool2d, windows), (torch.randn(1, 1, 4, 6),))
    with pytest.raises(TbnError, match=r"adaptive_max_pool2d to .* expected at least one"):
        tbn_tvm.compile(program)
