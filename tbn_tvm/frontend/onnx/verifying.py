"""TVM's types against ONNX's: a converter that misread its operator seldom gets both right."""

from __future__ import annotations

import math

from onnx import ValueInfoProto
from tvm import relax
from tvm import tirx as tir

from tbn_tvm.errors import FormatError
from tbn_tvm.frontend.onnx.graph import dtype_name
from tbn_tvm.frontend.onnx.limits import MAX_ELEMENTS
from tbn_tvm.frontend.onnx.tensors import DTYPES


def verify_types(
    values: dict[str, relax.Expr], types: dict[str, ValueInfoProto], inputs: list[ValueInfoProto]
) -> None:
    """Compare what TVM made of each value with what ONNX infers for it.

    Parameters
    ----------
    values : dict of str to relax.Expr
        What the importer made, by value name.
    types : dict of str to ValueInfoProto
        What ONNX infers.
    inputs : list of ValueInfoProto
        The model's inputs, whose free dimensions are the only ones that may be left.

    Raises
    ------
    FormatError
        Where they contradict one another, or a size is absurd or known only at run time.
    """
    free = {e.dim_param for value in inputs for e in value.type.tensor_type.shape.dim}
    for name, value in values.items():
        held = getattr(value, "ty", None)
        # Shapes and numbers that the importer computes with are no tensors.
        if not isinstance(held, relax.TensorType) or name not in types:
            continue
        _verify(name, held, types[name].type.tensor_type, free)


def _verify(name: str, held: relax.TensorType, wanted, free: set[str]) -> None:
    dtype = dtype_name(wanted.elem_type)
    if dtype not in DTYPES:
        # TVM casts to narrow floats as if their range were that of integers.
        raise FormatError(
            f"value {name!r} is of {dtype}, which is not supported: expected one of "
            f"{', '.join(sorted(DTYPES))}"
        )
    if not isinstance(held.shape, relax.ShapeExpr):
        raise FormatError(
            f"value {name!r}: its shape depends on the data, which cannot be planned for"
        )
    extents = list(held.shape.values)
    for extent in extents:
        unknown = {v.name for v in tir.analysis.undefined_vars(tir.convert(extent))} - free
        if unknown:
            raise FormatError(
                f"value {name!r}: an extent ({extent}) depends on the data, which cannot be "
                "planned for"
            )
    fixed = [int(e) if isinstance(e, tir.IntImm) else None for e in extents]
    if math.prod(e for e in fixed if e is not None) > MAX_ELEMENTS:
        raise FormatError(
            f"value {name!r} has shape {[str(e) for e in extents]}: expected at most "
            f"{MAX_ELEMENTS:,} elements"
        )
    shape = [e.dim_value if e.HasField("dim_value") else None for e in wanted.shape.dim]
    fits = str(held.dtype) == dtype
    if wanted.HasField("shape"):
        fits = fits and len(shape) == len(fixed)
        fits = fits and all(
            a is None or b is None or a == b for a, b in zip(shape, fixed, strict=True)
        )
    if not fits:
        raise FormatError(
            f"value {name!r}: TVM makes it {held.dtype} {[str(e) for e in extents]}, and ONNX "
            f"{dtype} {shape}; this use of its operator is not supported"
        )
