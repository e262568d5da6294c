"""Indexing by tensors and assignment to such places, as PyTorch has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import tbn_tvm
from tbn_tvm.errors import TbnError
from tbn_tvm.testing.function_module import Function


def export(function, x):
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(Function(function), (x,), dynamic_shapes=({0: batch},))


def assigned(x):
    x = x.clone()
    x[:, [0, 3], :, [2, 1]] = 7.0
    x[:, :, 1, torch.tensor([1, 2])] = 2 * x[:, :, 2, :2]
    x[x < 0] = 5
    return x


def between_positions(x):
    places = torch.arange(6)
    return x[:, :, places[:, None] - places[None, :]]


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: x[:, [0, -1, 2], [2, 3, -2]], id="pairs"),
        pytest.param(lambda x: x[:, torch.tensor([[0], [1]]), torch.tensor([2, 3])], id="a grid"),
        pytest.param(lambda x: x[:, [1, 2], :, [3, 4]], id="axes apart"),
        pytest.param(lambda x: x[torch.arange(x.shape[0]), x[:, 0, 0, 0].long()], id="an example"),
        pytest.param(between_positions, id="computed negative indices"),
        pytest.param(assigned, id="assignment"),
        pytest.param(
            lambda x: x.index_add(1, torch.tensor([0, 0, 3]), x[:, 1:]), id="additions in one place"
        ),
        pytest.param(lambda x: x.unfold(2, 3, 2).unfold(-2, 2, 1), id="windows"),
        pytest.param(lambda x: F.unfold(x, 3, padding=1, stride=2), id="unfold"),
        pytest.param(lambda x: F.fold(x.flatten(2), (7, 7), 2), id="fold"),
    ],
)
def test_what_pytorch_takes_and_puts(function):
    torch.manual_seed(0)
    x = 3 * torch.rand(2, 4, 6, 6) - 1
    artifact = tbn_tvm.compile(export(function, x))
    for batch in (x, torch.cat([x, x[:1]])):
        result = artifact.run(batch.numpy())
        np.testing.assert_allclose(result, function(batch), rtol=1e-5, atol=1e-6)


def test_adding_where_indices_point():
    x, places = torch.rand(2, 5, 3), torch.tensor([[[0], [0], [4]], [[1], [1], [1]]])

    def function(x):
        return x.scatter_add(1, places, 2 * x)

    program = torch.export.export(Function(function), (x,))
    np.testing.assert_allclose(tbn_tvm.compile(program).run(x.numpy()), function(x), rtol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: x.index_put((x > 0,), x[0, 0, 0, :3].repeat(2)), id="assignment"),
        pytest.param(
            lambda x: F.max_pool2d(x, 2, return_indices=True)[1], id="indices of max pooling"
        ),
    ],
)
def test_what_cannot_be_planned_for_is_refused(function):
    x = torch.tensor([[[[1.0, 1, 1, -1]] * 2]])
    with pytest.raises(TbnError, match=r"torch\.where|return_indices=False"):
        tbn_tvm.compile(torch.export.export(Function(function), (x,)))
