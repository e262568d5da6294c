"""Multilayer perceptrons: linear layers with ReLU, and perhaps batch norm, between them.

The defaults are the paper's model for microcontrollers ("Tiled Bit Networks", arXiv:2407.12075,
section 5): 784-128-10 on MNIST without biases, 101,632 parameters, of which the first layer's
100,352 are tiled at ``min_size = 64000``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from tbn_tvm.errors import UsageError
from tbn_tvm.models.twin import tiled
from tbn_tvm.nn import MeanOnlyBatchNorm1d
from tbn_tvm.nn.functional import AlphaMode

PAPER_WIDTHS = (784, 128, 10)
"""Inputs, hidden units and classes of the paper's model."""


class SumOfLinears(nn.Module):
    """A linear layer in ``count`` parts whose outputs are added up.

    Tiled, each part is of bits with a scalar of its own, so that ``count`` binary parts are one
    layer with weights of ``count`` bits (the multiple binary bases of ABC-Net, arXiv:1711.11294).

    Parameters
    ----------
    inputs, outputs : int
        Features.
    count : int
        Parts.
    bias : bool
        Whether there is a bias; the first part holds it.
    """

    def __init__(self, inputs: int, outputs: int, count: int, bias: bool) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Linear(inputs, outputs, bias=bias and part == 0) for part in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs) -> (B, outputs)``."""
        return sum((layer(x) for layer in self.parts[1:]), self.parts[0](x))


def mlp(
    p: int | None = 4,
    min_size: int = 64_000,
    alpha: AlphaMode = "tile",
    widths: Sequence[int] = PAPER_WIDTHS,
    bias: bool = False,
    norm: bool = False,
    centre: bool = False,
    head_bits: int = 1,
    head_bias: bool = True,
    smooth: int = 1,
    **options,
) -> nn.Sequential:
    """``(B, widths[0]) -> (B, widths[-1])``.

    Parameters
    ----------
    p : int or None
        Compression factor; None for the float twin.
    min_size : int
        Layers with fewer weights are binary (lambda of the paper).
    alpha : {"tile", "layer", "mirrored"}
        See :data:`~tbn_tvm.nn.functional.AlphaMode`.
    widths : sequence of int
        Inputs, hidden units of each layer, outputs.
    bias, norm : bool
        Whether layers have biases, and batch norm between them.
    centre : bool
        Mean-only batch norm between layers, which ends as their biases; the last layer has a bias
        then.
    head_bits : int
        Binary parts of the last layer, whose outputs are added up (:class:`SumOfLinears`).
    head_bias : bool
        False leaves the last layer's bias out, whatever the others have.
    smooth : int
        Side of the square, odd, over which square images are averaged first; 1 for not. Binary
        weights behind it act as smooth ones of many levels, without a byte.
    **options
        Further arguments of :func:`tbn_tvm.nn.tile_model`.

    Raises
    ------
    UsageError
        Where ``head_bits`` is below 1, ``smooth`` is not odd, or inputs to be averaged are no
        square.
    """
    if head_bits < 1:
        raise UsageError(f"head_bits={head_bits}: expected 1 or more")
    side = math.isqrt(widths[0])
    if smooth < 1 or smooth % 2 == 0 or (smooth > 1 and side**2 != widths[0]):
        raise UsageError(
            f"smooth={smooth} with {widths[0]} inputs: expected an odd side and square images"
        )
    layers: list[nn.Module] = []
    if smooth > 1:
        layers += [
            nn.Unflatten(1, (1, side, side)),
            nn.AvgPool2d(smooth, stride=1, padding=smooth // 2),
            nn.Flatten(),
        ]
    for inputs, outputs in itertools.pairwise(widths[:-1]):
        layers.append(nn.Linear(inputs, outputs, bias=bias and not centre))
        if norm:
            layers.append(nn.BatchNorm1d(outputs))
        if centre:
            layers.append(MeanOnlyBatchNorm1d(outputs))
        layers.append(nn.ReLU())
    # What leaves the last layer is the result as it is.
    last_bias = head_bias and (bias or centre)
    if head_bits == 1:
        layers.append(nn.Linear(*widths[-2:], bias=last_bias))
    else:
        layers.append(SumOfLinears(*widths[-2:], head_bits, last_bias))
    return tiled(nn.Sequential(*layers), p, min_size, alpha, **options)
