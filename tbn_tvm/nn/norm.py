"""Batch norm that a bias can hold."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MeanOnlyBatchNorm1d(nn.Module):
    """Subtracts each feature's mean over the batch and adds a bias: ``(B, C) -> (B, C)``.

    Ordinary batch norm also divides by the deviation, which gives every output channel of a tiled
    layer a scale of its own to store. The mean alone becomes part of the bias: training gets the
    better conditioned problem, and inference costs ``C`` floats. Salimans and Kingma, "Weight
    normalization", arXiv:1602.07868, section 4.

    Parameters
    ----------
    features : int
        ``C``.
    spread : float
        Biases start uniform between minus this and this. The copies of a tiled row see the same
        product: only their biases let them bend in different places.
    momentum : float
        Weight of the newest batch in the running mean, which inference subtracts.
    """

    def __init__(self, features: int, spread: float = 0.3, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.bias = nn.Parameter(torch.empty(features).uniform_(-spread, spread))
        self.register_buffer("running_mean", torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x + (self.bias - self.running_mean)
        mean = x.mean(0)
        self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), self.momentum)
        return x + (self.bias - mean)

    @torch.no_grad()
    def frozen(self) -> Bias:
        """The inference form: bias and running mean in one."""
        return Bias(self.bias - self.running_mean)

    def extra_repr(self) -> str:
        return f"{self.bias.numel()}, momentum={self.momentum}"


class Bias(nn.Module):
    """Adds a vector: ``(..., C) -> (..., C)``."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias.detach().clone(), False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias
