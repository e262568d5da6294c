"""What a user would run instead of a tiled layer: PyTorch's dense layer, in the same dtype.

Where a layer can be called in several ways, all are measured and the fastest counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from tbn_tvm.bench.cuda_layer import Layer
from tbn_tvm.bench.cuda_timing import copies_for, rotated


class Rival:
    """One way to call the dense layer, on rotated operands.

    Attributes
    ----------
    name : str
        For reports.
    xs : list of torch.Tensor
        Activations of each copy, in the layout it wants.
    calls : list of callable
        Each computes the outputs of a copy and returns them.
    cold : bool
        Whether the copies exceed the cache.
    """

    def __init__(self, name: str, xs: list, calls: list[Callable], cold: bool) -> None:
        self.name, self.xs, self.calls, self.cold = name, xs, calls, cold


def rivals(layer: Layer, l2: int) -> Iterator[Rival]:
    """The ways to compute a layer with cuBLAS or cuDNN.

    Parameters
    ----------
    layer : Layer
        On a GPU.
    l2 : int
        Bytes of the cache that operands have to exceed.
    """
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    weight, x, y = layer.weight(layer.dtype), layer.activations(), layer.outputs()
    nbytes = sum(t.numel() * t.element_size() for t in (weight, x, y))
    copies = copies_for(nbytes, l2)
    cold = nbytes * copies > l2
    if layer.case.side is None:
        weights = rotated(weight, copies)
        xs, ys = rotated(x, copies, torch.Tensor.normal_), rotated(y, copies, _poison)
        each = list(zip(xs, weights, ys, strict=True))
        yield Rival("cuBLAS mm", xs, [_mm(*one) for one in each], cold)
        if layer.case.batch == 1:
            yield Rival("cuBLAS mv", xs, [_mv(*one) for one in each], cold)
        return
    padding = layer.case.taps // 2
    for name, last in (("cuDNN NCHW", False), ("cuDNN channels last", True)):
        weights = _images(weight, copies, last)
        xs = _images(x, copies, last, torch.Tensor.normal_)
        calls = [_conv(*one, padding) for one in zip(xs, weights, strict=True)]
        yield Rival(name, xs, calls, cold)


def _poison(block: torch.Tensor) -> None:
    block.fill_(float("nan"))


def _mm(x, weight, y) -> Callable:
    turned = weight.t()
    return lambda: torch.mm(x, turned, out=y)


def _mv(x, weight, y) -> Callable:
    def call():
        torch.mv(weight, x[0], out=y[0])
        return y

    return call


def _conv(x, weight, padding: int) -> Callable:
    return lambda: torch.nn.functional.conv2d(x, weight, padding=padding)


def _images(tensor: torch.Tensor, copies: int, channels_last: bool, fill=None) -> list:
    """Copies of a tensor of four axes, the second of which may be last in memory."""
    if not channels_last:
        return rotated(tensor, copies, fill)
    turned = tensor.permute(0, 2, 3, 1).contiguous()
    return [copy.permute(0, 3, 1, 2) for copy in rotated(turned, copies, fill)]
