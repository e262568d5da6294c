"""Encoder Transformers with tiled layers, for multivariate forecasting.

A forecast needs no decoder: the encoder of Vaswani et al. (arXiv:1706.03762), pre-norm, reads the
past, and a linear layer writes the whole horizon. What a token is decides between two designs:

``tokens="variables"``
    Liu et al., "iTransformer: Inverted Transformers Are Effective for Time Series Forecasting"
    (arXiv:2310.06625): a token is the whole past of one variable, attention goes between
    variables, and the last layer turns each token into the forecast of its variable.
``tokens="steps"``
    Zerveas et al., "A Transformer-based Framework for Multivariate Time Series Representation
    Learning" (arXiv:2010.02803): a token is one time step of all variables, positions are learnt,
    and the last layer reads all tokens side by side.

Weights by default (length 96, horizon 96, 7 variables, width 256, MLP 256, 2 blocks):

=========================  ====================  ============================
layer                      ``variables``         ``steps``
=========================  ====================  ============================
embedding                  256 x 96              256 x 7
queries, keys, values (2)  768 x 256             768 x 256
attention's output (2)     256 x 256             256 x 256
MLP (2 x 2)                256 x 256             256 x 256
head                       96 x 256              672 x 24,576
all                        835,584               17,303,296
=========================  ====================  ============================
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tbn_tvm.errors import UsageError
from tbn_tvm.models.instance_norm import ReversibleInstanceNorm
from tbn_tvm.models.twin import tiled
from tbn_tvm.models.vit import Attention, FeedForward
from tbn_tvm.nn.functional import AlphaMode


class SeriesTransformer(nn.Module):
    """``(B, length, variables) -> (B, horizon, variables)``, with ordinary float layers.

    Parameters
    ----------
    length, horizon, variables : int
        Time steps that go in and that come out, and series side by side.
    tokens : {"variables", "steps"}
        What attention goes between.
    dim, depth, heads, mlp_dim : int
        Width of a token, number of blocks, attention heads, width inside the MLP.
    dropout : float
        On the embedded tokens and on what each half of a block adds.
    reversible : bool
        Whether reversible instance normalisation goes around the model.
    """

    def __init__(
        self,
        length: int = 96,
        horizon: int = 96,
        variables: int = 7,
        tokens: str = "variables",
        dim: int = 256,
        depth: int = 2,
        heads: int = 8,
        mlp_dim: int = 256,
        dropout: float = 0.1,
        reversible: bool = True,
    ) -> None:
        super().__init__()
        if tokens not in ("variables", "steps"):
            raise UsageError(f"tokens={tokens!r}: expected variables or steps")
        if dim % heads:
            raise UsageError(f"{heads} heads do not divide a width of {dim}")
        self.inverted = tokens == "variables"
        self.horizon = horizon
        self.instance_norm = ReversibleInstanceNorm(variables) if reversible else None
        self.embed = nn.Linear(length if self.inverted else variables, dim)
        self.positions = None if self.inverted else nn.Parameter(0.02 * torch.randn(1, length, dim))
        self.blocks = nn.ModuleList(
            nn.ModuleList([Attention(dim, heads, dim // heads), FeedForward(dim, mlp_dim)])
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = (
            nn.Linear(dim, horizon)
            if self.inverted
            else nn.Linear(length * dim, horizon * variables)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        if self.instance_norm is None:
            return self._forecast(x)
        x, mean, deviation = self.instance_norm(x)
        return self.instance_norm.restore(self._forecast(x), mean, deviation)

    def _forecast(self, x: Tensor) -> Tensor:
        x = self.embed(x.transpose(1, 2) if self.inverted else x)
        x = self.dropout(x if self.positions is None else x + self.positions)
        for attention, feed_forward in self.blocks:
            x = x + self.dropout(attention(x))
            x = x + self.dropout(feed_forward(x))
        x = self.norm(x)
        if self.inverted:
            return self.head(x).transpose(1, 2)
        return self.head(x.flatten(1)).unflatten(1, (self.horizon, -1))


def series_transformer(
    p: int | None = 4, min_size: int = 64_000, alpha: AlphaMode = "tile", **sizes
) -> nn.Module:
    """A trainable forecasting Transformer whose linear layers are tiled.

    Parameters
    ----------
    p : int or None
        Compression factor; None gives the float twin.
    min_size : int
        Layers with fewer weights are binary (lambda of the paper).
    alpha : {"tile", "layer"}
        One scalar a use of the tile, or one a layer.
    **sizes
        Of :class:`SeriesTransformer`.
    """
    return tiled(SeriesTransformer(**sizes), p, min_size, alpha)
