"""How the bits of the paper's microcontroller model are polished (recipe ``mnist-mlp``).

Its first layer is tiled, its second, with fewer weights than lambda, binary; there are no biases.
Coordinate descent over the bits (:mod:`tbn_tvm.models.polish`) sees every training image twice,
once moved by a pixel: without, it fits the training set and not digits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tbn_tvm.errors import UsageError
from tbn_tvm.models.polish import Polisher
from tbn_tvm.nn import TiledLinear
from tbn_tvm.tiling import Alignment


def polish(model: nn.Module, inputs: Tensor, targets: Tensor) -> dict:
    """One sweep; see :mod:`tbn_tvm.training.polish`.

    Nothing is changed where the tile is not whole rows.

    Parameters
    ----------
    model : nn.Module
        Two tiled layers with ReLU between them.
    inputs, targets : Tensor
        float32 ``(N, 784)``, int64 ``(N,)``.

    Raises
    ------
    UsageError
        For a model of another form.
    """
    layers = [module for module in model.modules() if isinstance(module, TiledLinear)]
    biased = any(layer.bias is not None for layer in layers)
    plain = all(isinstance(module, (TiledLinear, nn.ReLU)) for module in model.children())
    if not plain or len(layers) != 2 or layers[1].p != 1 or biased:
        raise UsageError(
            "coordinate descent over bits is for two layers, one tiled and one binary, without "
            "biases or norms; set polish_sweeps to 0"
        )
    if layers[0].tiled_tensor().alignment is not Alignment.WHOLE_ROWS:
        return {"flips": 0}
    images = torch.cat([inputs, moved_by_a_pixel(inputs)])
    flips, loss = Polisher(*layers, images, targets.repeat(2)).sweep()
    return {"loss": loss, "flips": flips}


def moved_by_a_pixel(images: torch.Tensor) -> torch.Tensor:
    """Each image, shape ``(N, 784)``, moved right, left, down or up: the same way in every run."""
    ways = torch.randint(0, 4, (len(images),), generator=torch.Generator().manual_seed(0))
    moved = images.view(-1, 28, 28).clone()
    for number, way in enumerate(((0, 1), (0, -1), (1, 0), (-1, 0))):
        # Digits are centred: what goes round the edge is the empty border.
        moved[ways == number] = torch.roll(moved[ways == number], way, (1, 2))
    return moved.view(-1, 784)
