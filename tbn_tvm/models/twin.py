"""What all architectures share: one definition for the tiled model and for its float twin."""

from __future__ import annotations

from torch import nn

from tbn_tvm.nn import tile_model
from tbn_tvm.nn.functional import AlphaMode


def tiled(
    model: nn.Module,
    p: int | None,
    min_size: int = 64_000,
    alpha: AlphaMode = "tile",
    **options,
) -> nn.Module:
    """The model itself, its layers tiled in place unless it is to be the float twin.

    Parameters
    ----------
    model : nn.Module
        Of ordinary float layers.
    p : int or None
        Compression factor; None leaves the model as it is.
    min_size : int
        Layers with fewer weights are binary (lambda of the paper).
    alpha : {"tile", "layer"}
        One scalar a use of the tile, or one a layer.
    **options
        Further arguments of :func:`tbn_tvm.nn.tile_model`.
    """
    if p is not None:
        # Untrained: there is nothing to come near to.
        tile_model(model, p, min_size, **{"alpha": alpha, "start": "copy", **options})
    return model
