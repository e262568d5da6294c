"""Sorts, scans and scatters along an axis, and norms, compute what PyTorch does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from tbn_tvm.errors import FormatError
from tbn_tvm.evaluate import evaluate
from tbn_tvm.importing import import_model


class Of(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments):
        return self.function(*arguments)


def compared(function, *inputs, free: bool = False, tolerance: float = 1e-5) -> None:
    module = Of(function).eval()
    shapes = (tuple({0: torch.export.Dim("batch")} for _ in inputs),) if free else None
    program = torch.export.export(module, inputs, dynamic_shapes=shapes)
    results = evaluate(import_model(program), [value.numpy() for value in inputs])
    for ours, theirs in zip(results, pytree.tree_leaves(module(*inputs)), strict=True):
        theirs = theirs.detach().numpy()
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("descending", [False, True])
def test_equal_elements_keep_their_order_where_a_sort_is_stable(descending):
    x = torch.randint(0, 3, (3, 20), generator=torch.Generator().manual_seed(0)).float()
    compared(lambda x: torch.sort(x, dim=1, stable=True, descending=descending), x)
    compared(lambda x: torch.argsort(x, dim=0, stable=True, descending=descending), x)


def test_sums_of_exponentials_neither_vanish_nor_overflow():
    infinity = float("inf")
    x = torch.tensor([-infinity, -infinity, -300.0, -300.0, 0.5, 700.0, -2.0, infinity, 1.0])
    compared(lambda x: torch.logcumsumexp(x, 0), x)
    compared(lambda x: torch.logcumsumexp(x, -1), 50 * torch.randn(3, 7), free=True)
    compared(lambda x: torch.logcumsumexp(x, 1), torch.randn(2, 5, 2).double(), tolerance=1e-12)


INDEX = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]])


@pytest.mark.parametrize("reduction", ["sum", "prod", "amax", "amin"])
def test_scatters_bring_together_what_meets(reduction):
    torch.manual_seed(0)
    x, source = torch.randn(3, 4), torch.randn(2, 4)
    compared(lambda x, s, i: torch.scatter_reduce(x, 0, i, s, reduction), x, source, INDEX)
    if reduction == "sum":
        compared(lambda x, s, i: torch.scatter_add(x, 0, i[:, :3], s), x, source, INDEX)
        whole = torch.arange(12).reshape(3, 4), torch.arange(8).reshape(2, 4)
        compared(lambda x, s, i: torch.scatter_add(x, -2, i, s), *whole, INDEX)


def test_means_that_meet_are_refused_by_name():
    x = torch.randn(3, 4)
    program = torch.export.export(
        Of(lambda x, i: torch.scatter_reduce(x, 0, i, x, "mean")), (x, INDEX)
    )
    with pytest.raises(FormatError, match="scatter_reduce by 'mean'"):
        import_model(program)


def test_instances_of_a_free_batch_are_normalised():
    torch.manual_seed(0)
    x = 3 + torch.randn(3, 4, 5, 6)
    compared(functional.instance_norm, x, free=True)
    norm = nn.InstanceNorm2d(4, affine=True)
    nn.init.normal_(norm.weight)
    compared(norm, x, free=True)
    kept = nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
    kept(x[..., 0])
    compared(kept.eval(), x[..., 0], free=True)


def test_layers_are_normalised_in_float64():
    torch.manual_seed(0)
    norm = nn.LayerNorm(6).double()
    nn.init.normal_(norm.weight)
    x = 100 + torch.randn(3, 4, 6).double()
    compared(norm, x, free=True, tolerance=1e-11)
    compared(lambda x: functional.layer_norm(x, (4, 6), eps=0.1), x, tolerance=1e-11)
