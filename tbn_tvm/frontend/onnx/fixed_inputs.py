"""Inputs that must be known when a model is compiled, because sizes or axes follow from them."""

from __future__ import annotations

import tvm

from tbn_tvm.frontend.onnx.shape_values import is_shape

_REDUCTIONS = """
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare
"""
_SHAPES = ("ConstantOfShape", "Expand", "Range", "Reshape", "Resize", "Slice", "Unsqueeze")
"""Operators whose inputs may also be shapes of other tensors."""

_FIXED: dict[str, dict[int, str]] = {
    **{name: {1: "axes"} for name in _REDUCTIONS.split()},
    **{name: {0: "size"} for name in ("BlackmanWindow", "HammingWindow", "HannWindow")},
    "AffineGrid": {1: "size"},
    "CenterCropPad": {1: "shape"},
    "Col2Im": {1: "image_shape", 2: "block_shape"},
    "ConstantOfShape": {0: "shape"},
    "CumProd": {1: "axis"},
    "CumSum": {1: "axis"},
    "Expand": {1: "shape"},
    "OneHot": {1: "depth"},
    "Pad": {1: "pads", 2: "constant_value", 3: "axes"},
    "Range": {0: "start", 1: "limit", 2: "delta"},
    "Reshape": {1: "shape"},
    "Resize": {2: "scales", 3: "sizes"},
    "Slice": {1: "starts", 2: "ends", 3: "axes", 4: "steps"},
    "Split": {1: "split"},
    "Squeeze": {1: "axes"},
    "Tile": {1: "repeats"},
    "TopK": {1: "K"},
    "Unsqueeze": {1: "axes"},
}
"""By operator and place, with ONNX's name of the input."""


def check_fixed_inputs(kind: str, inputs: list) -> None:
    """Refuse values that only the data tells, where the operator's output depends on them so.

    Raises
    ------
    ValueError
        Naming the input.
    """
    for at, name in _FIXED.get(kind, {}).items():
        value = inputs[at] if at < len(inputs) else None
        if value is None or isinstance(value, tvm.ir.GenericConst):
            continue
        if is_shape(value) and kind in _SHAPES:
            continue
        made = ", or made of shapes of tensors" if kind in _SHAPES else ""
        raise ValueError(
            f"its input {at}, {name}, must be constant{made}: give it a fixed value when "
            "exporting the model"
        )
