"""Fit a tiled model's scalars, biases and batch statistics to a float one's outputs on samples.

The nearest weight is not the weight with the nearest outputs, and errors add up from layer to
layer. Layers are taken in the order of execution: each sees the inputs that the tiled model really
gives it, and its scalars become those with which its outputs lie nearest to the float layer's in
the mean of squares. A bias takes what is left of the mean, and batch normalisation behind it
learns the statistics of what comes now. Bits stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tbn_tvm.nn.base import TiledLayer
from tbn_tvm.nn.observe import run_once

_NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d)


@torch.no_grad()
def fit_to_outputs(model: nn.Module, reference: nn.Module, samples: tuple[Tensor, ...]) -> None:
    """Fit a tiled model to the float model it was made from, in place.

    Parameters
    ----------
    model : nn.Module
        With tiled layers, under the names that float layers have in ``reference``.
    reference : nn.Module
        The float model.
    samples : tuple of Tensor
        Inputs, a batch each. A few hundred samples do; all activations of the float model for
        them are held in memory. A layer that is called several times is fitted on its first call.
    """
    tiled = {name: m for name, m in model.named_modules() if isinstance(m, TiledLayer)}
    expected = _first_outputs(reference, samples, tiled)
    fitted: set[nn.Module] = set()

    def on_first_call(act: Callable[[nn.Module, Tensor], None]):
        def hook(module: nn.Module, args: tuple) -> None:
            if module not in fitted:
                fitted.add(module)
                act(module, args[0])

        return hook

    handles = [
        layer.register_forward_pre_hook(
            on_first_call(lambda module, x, y=expected[name]: _fit_layer(module, x, y))
        )
        for name, layer in tiled.items()
        if name in expected
    ]
    handles += [
        norm.register_forward_pre_hook(on_first_call(_fit_statistics))
        for norm in model.modules()
        if type(norm) in _NORMALISATIONS and norm.track_running_stats
    ]
    run_once(model, samples, handles)


def _first_outputs(
    model: nn.Module, samples: tuple[Tensor, ...], names: dict[str, nn.Module]
) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}

    def keep(name: str):
        return lambda _module, _args, output: outputs.setdefault(name, output)

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    run_once(model, samples, handles)
    return outputs


def _fit_layer(layer: TiledLayer, x: Tensor, expected: Tensor) -> None:
    axis = -1 if len(layer.shape) == 2 else 1 - len(layer.shape)
    if layer.bias is not None:
        layer.bias.zero_()
    # Channels first, everything else flat.
    target = expected.double().movedim(axis, 0).flatten(1)
    product = layer(x).double().movedim(axis, 0).flatten(1)
    if layer.bias is None:
        layer.scale_alphas(_factors(layer, product, target))
        return
    means = target.mean(1), product.mean(1)
    factors = _factors(layer, product - means[1][:, None], target - means[0][:, None])
    layer.scale_alphas(factors)
    rows = factors.repeat_interleave(layer.shape[0] // len(factors))
    layer.bias.copy_(means[0] - rows * means[1])


def _factors(layer: TiledLayer, product: Tensor, target: Tensor) -> Tensor:
    """By how much each alpha changes: one factor a block where blocks are whole rows."""
    alone = layer.alpha != "layer" and layer.shape[0] % layer.p == 0
    blocks = layer.p if alone else 1
    both = (product * target).reshape(blocks, -1).sum(1)
    energy = product.square().reshape(blocks, -1).sum(1)
    # An alpha that the samples say nothing about, or would turn round, stays.
    return torch.where((energy > 0) & (both > 0), both / energy.clamp(min=1e-30), 1.0)


def _fit_statistics(norm: nn.Module, x: Tensor) -> None:
    values = x.double().movedim(1, 0).flatten(1)
    if values.shape[1] < 2:
        return  # one value has no variance
    norm.running_mean.copy_(values.mean(1))
    norm.running_var.copy_(values.var(1))
