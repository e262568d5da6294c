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
from tbn_tvm.nn.norm import Bias, MeanOnlyBatchNorm1d
from tbn_tvm.nn.reference import load_reference_state_dict

__all__ = [
    "Bias",
    "ConversionReport",
    "FrozenTiledConv1d",
    "FrozenTiledConv2d",
    "FrozenTiledLinear",
    "LayerReport",
    "MeanOnlyBatchNorm1d",
    "TiledConv1d",
    "TiledConv2d",
    "TiledLinear",
    "freeze",
    "functional",
    "load_reference_state_dict",
    "tile_model",
]
