"""Operators that select: by chance, by size, by overlap; some only in ways that can be planned."""

from __future__ import annotations

import tvm
from tvm import relax

_SORTABLE = ("float32", "float64", "float16", "int8", "int32", "int64", "uint8")
"""Element types that TVM's run time sorts."""


def _dropout(_bb, inputs, _attrs: dict, _opset: int) -> relax.Expr:
    """Nothing is dropped, and the mask says so; TVM's converter makes the mask one of floats."""
    x, _ratio, training = inputs[0], inputs[1], inputs[2]
    off = isinstance(training, tvm.ir.GenericConst) and not training.value.numpy().any()
    if training is not None and not off:
        raise ValueError("training_mode is for training: expected a constant false")
    return relax.Tuple([x, relax.op.ones(relax.ShapeExpr(x.ty.shape.values), "bool")])


def _sortable(inputs, _attrs: dict) -> None:
    dtype = str(inputs[0].ty.dtype)
    if dtype not in _SORTABLE:
        raise ValueError(
            f"elements of {dtype} cannot be sorted: cast them to one of {', '.join(_SORTABLE)}"
        )


def _no_boxes(_inputs, _attrs: dict) -> None:
    raise ValueError(
        "how many boxes it selects depends on the data, which cannot be planned for: end the model "
        "before it, at boxes and scores"
    )


def _no_output_shape(inputs, _attrs: dict) -> None:
    if inputs[2] is not None:
        raise ValueError("output_shape is not supported: leave it out")


SELECTING = {"Dropout": _dropout}
"""Converters."""

SELECTING_GUARDS = {
    "MaxUnpool": _no_output_shape,
    "NonMaxSuppression": _no_boxes,
    "TopK": _sortable,
}
"""Refuse what cannot be compiled; take inputs and attributes."""
