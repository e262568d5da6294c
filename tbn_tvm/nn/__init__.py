"""Training side: tiled layers, conversion of ordinary models, and the operators they export to."""

from tbn_tvm.nn import functional
from tbn_tvm.nn.convert import ConversionReport, LayerReport, freeze, tile_model
from tbn_tvm.nn.layers import (
    FrozenTiledConv1d,
    FrozenTiledConv2d,
    FrozenTiledLinear,
    TiledConv1d,
    TiledConv2d,
    TiledLinear,
)

__all__ = [
    "ConversionReport",
    "FrozenTiledConv1d",
    "FrozenTiledConv2d",
    "FrozenTiledLinear",
    "LayerReport",
    "TiledConv1d",
    "TiledConv2d",
    "TiledLinear",
    "freeze",
    "functional",
    "tile_model",
]
