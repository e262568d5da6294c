"""TSMixer with tiled layers, for multivariate forecasting.

The architecture is that of Chen et al., "TSMixer: An All-MLP Architecture for Time Series
Forecasting" (arXiv:2303.06053), section 4.1, without auxiliary variables: blocks of a linear layer
along time, shared by all variables, and a two-layer MLP along variables, shared by all time steps,
each behind a batch norm over the whole (time, variable) plane and beside a residual connection;
then one linear layer from the input's length to the horizon. Reversible instance normalisation
around it is an option, as in the authors' experiments.

Along time, a block may also hold a two-layer MLP of ``time_hidden`` units, as the mixers of images
do: one linear layer of 96 x 96 has 9,216 weights, which as 2,304 shared signs say too little.

Weights by default (length 96, horizon 96, 7 variables, 2 blocks, 64 units along variables):

=============================  ==================  =========
layer                          weights             each
=============================  ==================  =========
time mixing (2)                96 x 96             9,216
variable mixing, in (2)        64 x 7              448
variable mixing, out (2)       7 x 64              448
temporal projection            96 x 96             9,216
=============================  ==================  =========

With ``time_hidden=512`` a block's time mixing is 512 x 96 and 96 x 512, 49,152 weights each.
"""

from __future__ import annotations

from torch import Tensor, nn

from tbn_tvm.models.instance_norm import ReversibleInstanceNorm
from tbn_tvm.models.twin import tiled
from tbn_tvm.nn.functional import AlphaMode


class PlaneNorm(nn.Module):
    """Batch norm with a mean and a deviation for each (time step, variable)."""

    def __init__(self, length: int, variables: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(length * variables)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(1)).unflatten(1, x.shape[1:])


class Mixing(nn.Sequential):
    """One linear layer with ReLU, or two with ReLU between them, along the last axis."""

    def __init__(self, width: int, hidden: int | None, dropout: float) -> None:
        first = (nn.Linear(width, hidden or width), nn.ReLU(), nn.Dropout(dropout))
        second = () if hidden is None else (nn.Linear(hidden, width), nn.Dropout(dropout))
        super().__init__(*first, *second)


class MixerBlock(nn.Module):
    """``(B, length, variables)`` to the same: along time, then along variables."""

    def __init__(
        self, length: int, variables: int, hidden: int, time_hidden: int | None, dropout: float
    ) -> None:
        super().__init__()
        self.time_norm = PlaneNorm(length, variables)
        self.time = Mixing(length, time_hidden, dropout)
        self.variable_norm = PlaneNorm(length, variables)
        self.variable = Mixing(variables, hidden, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.time(self.time_norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.variable(self.variable_norm(x))


class Mixer(nn.Module):
    """``(B, length, variables) -> (B, horizon, variables)``, with ordinary float layers.

    Parameters
    ----------
    length, horizon, variables : int
        Time steps that go in and that come out, and series side by side.
    blocks : int
        Mixer blocks.
    hidden : int
        Units of the MLP along variables.
    time_hidden : int, optional
        Units of an MLP along time; without, one linear layer as published.
    dropout : float
        After each layer of a block.
    reversible : bool
        Whether reversible instance normalisation goes around the model.
    """

    def __init__(
        self,
        length: int = 96,
        horizon: int = 96,
        variables: int = 7,
        blocks: int = 2,
        hidden: int = 64,
        time_hidden: int | None = None,
        dropout: float = 0.1,
        reversible: bool = True,
    ) -> None:
        super().__init__()
        self.instance_norm = ReversibleInstanceNorm(variables) if reversible else None
        self.blocks = nn.Sequential(
            *(MixerBlock(length, variables, hidden, time_hidden, dropout) for _ in range(blocks))
        )
        self.projection = nn.Linear(length, horizon)

    def forward(self, x: Tensor) -> Tensor:
        if self.instance_norm is None:
            return self._forecast(x)
        x, mean, deviation = self.instance_norm(x)
        return self.instance_norm.restore(self._forecast(x), mean, deviation)

    def _forecast(self, x: Tensor) -> Tensor:
        return self.projection(self.blocks(x).transpose(1, 2)).transpose(1, 2)


def tsmixer(
    p: int | None = 4, min_size: int = 64_000, alpha: AlphaMode = "tile", **sizes
) -> nn.Module:
    """A trainable TSMixer whose linear layers are tiled.

    Parameters
    ----------
    p : int or None
        Compression factor; None gives the float twin.
    min_size : int
        Layers with fewer weights are binary (lambda of the paper).
    alpha : {"tile", "layer"}
        One scalar a use of the tile, or one a layer.
    **sizes
        Of :class:`Mixer`.
    """
    return tiled(Mixer(**sizes), p, min_size, alpha)
