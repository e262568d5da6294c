"""Integers, booleans and floats beside one another have the types PyTorch gives them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tbn_tvm
from tbn_tvm.testing.function_module import Function


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda i: (i * 0.5, i / 2, 1.5 - i, i + 1.5), id="integers and numbers"),
        pytest.param(lambda i: (i == 1.5, i > 0.5, i.float() > i), id="comparisons"),
        pytest.param(lambda i: ((i > 0) * 2.5, (i > 0) * 2, (i > 0) + i), id="booleans"),
        pytest.param(lambda i: (i.exp(), i.abs().sqrt(), i.abs() ** 0.5), id="functions"),
        pytest.param(lambda i: (i // 2, i % 3, i % 2.5, torch.fmod(i, 3)), id="remainders"),
        pytest.param(
            lambda i: tuple(torch.div(i, 3, rounding_mode=mode) for mode in ("floor", "trunc")),
            id="rounded quotients",
        ),
        pytest.param(
            lambda i: (i.clamp(min=0), i.clamp(-2, 3), i.clamp(max=1), i.clamp(0.5, 2.5)),
            id="bounds",
        ),
        pytest.param(lambda i: (i.int().cumsum(1), (i > 0).cumsum(1), i.int().sum(1)), id="sums"),
        pytest.param(lambda i: (i.any(1), i.float().any(), i.prod(1)), id="reductions"),
        pytest.param(
            lambda i: (torch.where(i > 0, i.float(), i), torch.cat([i, i > 0, i.float()])),
            id="choices and concatenations",
        ),
        pytest.param(
            lambda i: i.float() * torch.tensor(2.5, dtype=torch.float64), id="a number as a tensor"
        ),
        pytest.param(lambda i: torch.var_mean(i.float(), 1), id="variance and mean"),
    ],
)
def test_values_and_types_are_those_of_pytorch(function):
    x = torch.tensor([[-5, -1, 0, 1, 2, 4], [3, 3, 0, 7, -2, -3]])
    model = Function(function)
    result = tbn_tvm.compile(torch.export.export(model, (x,))).run(x.numpy())
    results, expected = (r if isinstance(r, tuple) else (r,) for r in (result, model(x)))
    for ours, theirs in zip(results, expected, strict=True):
        assert ours.dtype == theirs.numpy().dtype
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)


def test_padding_of_a_text_is_masked():
    """The usual way: a mask of integers, less one, times a large number."""
    x, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [1, 1, 1]])

    class Masked(torch.nn.Module):
        def forward(self, x, mask):
            weights = (x + (1.0 - mask[..., None]) * -10000.0).softmax(1)
            return (weights * x).sum(1) / mask.sum(1, keepdim=True)

    result = tbn_tvm.compile(torch.export.export(Masked(), (x, mask))).run(x.numpy(), mask.numpy())
    np.testing.assert_allclose(result, Masked()(x, mask), rtol=1e-5)


def test_sums_of_half_precision_do_not_overflow():
    def reductions(x):
        image = x.reshape(1, 2, 50, 60)
        return (
            *(x.mean(1), x.mean(), (x / 128).sum(1), x.var(1), *torch.var_mean(x, 1)),
            *((x - 50).softmax(1), (x - 50).log_softmax(1), x.norm(dim=1), (x / 128).cumsum(1)),
            torch.nn.functional.avg_pool2d(image, (50, 30)),
            torch.nn.functional.adaptive_avg_pool2d(image, 1),
        )

    x = (torch.arange(6000.0).reshape(2, 3000) % 7 + 50).half()
    results = tbn_tvm.compile(torch.export.export(Function(reductions), (x,))).run(x.numpy())
    for result, expected in zip(results, reductions(x.double()), strict=True):
        assert result.dtype == np.float16
        # The least floats of 16 bits lie 6e-8 apart.
        np.testing.assert_allclose(result, expected.numpy(), rtol=2e-3, atol=6e-8)
