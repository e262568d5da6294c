"""Reversible instance normalisation of time series.

Kim et al., "Reversible Instance Normalization for Accurate Time-Series Forecasting against
Distribution Shift", ICLR 2022 (openreview cGDAkQo1C0p): each series is standardised by its own
mean and deviation, and the forecast is brought back by the same two numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ReversibleInstanceNorm(nn.Module):
    """Standardises each variable of each sample, and undoes it on the forecast.

    Parameters
    ----------
    variables : int
        Number of variables; each has a learnt scale and shift.
    eps : float
        Added to the variance.
    """

    def __init__(self, variables: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(variables))
        self.shift = nn.Parameter(torch.zeros(variables))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(B, length, variables)`` to the same shape, and mean and deviation of shape
        ``(B, 1, variables)``, through which no gradient flows."""
        mean = x.mean(1, keepdim=True).detach()
        deviation = torch.sqrt(x.var(1, keepdim=True, unbiased=False) + self.eps).detach()
        return (x - mean) / deviation * self.scale + self.shift, mean, deviation

    def restore(self, y: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        """A forecast ``(B, horizon, variables)`` in the units of the series it came from."""
        # The learnt scale may come near zero; its authors guard the division the same way.
        return (y - self.shift) / (self.scale + self.eps**2) * deviation + mean
