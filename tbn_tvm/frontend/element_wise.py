"""Element-wise operators and reductions of exported PyTorch programs that TVM's importer gets wrong
or does not know."""

from __future__ import annotations

import math

from torch import fx
from tvm import relax
from tvm import tirx as tir

from tbn_tvm.errors import FormatError


def clamp(node: fx.Node, importer) -> relax.Var:
    """Between bounds of which one may be missing and either a tensor; TVM's converter fails for
    integers, for which it has no infinity."""
    x, *given = importer.retrieve_args(node)
    emit = importer.block_builder.emit
    name = node.target.__name__.split(".")[0]
    names = {"clamp_min": ["min"], "clamp_max": ["max"]}.get(name, ["min", "max"])
    bounds = {**dict(zip(names, given, strict=False)), **node.kwargs}
    for which, combine in (("min", relax.op.maximum), ("max", relax.op.minimum)):
        bound = bounds.get(which)
        if bound is None:
            continue
        if not isinstance(bound, relax.Expr):
            bound = relax.const(bound, x.ty.dtype.dtype)
        x = emit(combine(x, bound))
    return x


def divide_rounded(node: fx.Node, importer) -> relax.Var:
    """``div`` rounded down or towards zero, or not; TVM's converter gives numbers types of their
    own."""
    x, other = importer.retrieve_args(node)[:2]
    emit, mode = importer.block_builder.emit, node.kwargs.get("rounding_mode")
    dtype = node.meta["val"].dtype
    name = str(dtype).removeprefix("torch.")
    x, other = (v if isinstance(v, relax.Expr) else relax.const(v, name) for v in (x, other))
    if mode == "floor":
        return emit(relax.op.floor_divide(x, other))
    quotient = emit(relax.op.divide(x, other))
    return emit(relax.op.trunc(quotient)) if mode and dtype.is_floating_point else quotient


def any_of(node: fx.Node, importer) -> relax.Var:
    """Whether any element along some axes is not zero; TVM's converter gives the greatest element
    where these are no booleans."""
    x, *given = importer.retrieve_args(node)
    named = {**dict(zip(("dim", "keepdim"), given, strict=False)), **node.kwargs}
    emit, dtype = importer.block_builder.emit, str(x.ty.dtype)
    if dtype != "bool":
        x = emit(relax.op.not_equal(x, relax.const(0, dtype)))
    most = relax.op.max(
        emit(relax.op.astype(x, "int8")), named.get("dim"), bool(named.get("keepdim"))
    )
    return emit(relax.op.astype(emit(most), "bool"))


def product(node: fx.Node, importer) -> relax.Var:
    """Along an axis, or of all elements."""
    x, *given = importer.retrieve_args(node)
    named = {**dict(zip(("dim", "keepdim"), given, strict=False)), **node.kwargs}
    return importer.block_builder.emit(
        relax.op.prod(x, named.get("dim"), bool(named.get("keepdim")))
    )


def variance_and_mean(node: fx.Node, importer) -> relax.Var:
    """The variance over some axes, of squares about the mean, and the mean.

    Raises
    ------
    FormatError
        Where one of the axes is of free size.
    """
    x, *given = importer.retrieve_args(node)
    named = {**dict(zip(("dim", "correction", "keepdim"), given, strict=False)), **node.kwargs}
    emit, extents, dtype = importer.block_builder.emit, x.ty.shape.values, str(x.ty.dtype)
    axes = [axis % len(extents) for axis in named.get("dim") or range(len(extents))]
    if not all(isinstance(extents[axis], tir.IntImm) for axis in axes):
        raise FormatError("var_mean over an axis of free size: export the model with it fixed")
    count = math.prod(int(extents[axis]) for axis in axes)
    correction = named.get("correction")
    # Sums of 16-bit floats overflow as such.
    exact = "float32" if dtype in ("float16", "bfloat16") else dtype
    x = emit(relax.op.astype(x, exact))
    mean = emit(relax.op.mean(x, axes, keepdims=True))
    centred = emit(relax.op.subtract(x, mean))
    squares = emit(relax.op.sum(emit(relax.op.multiply(centred, centred)), axes, keepdims=True))
    degrees = max(count - (1 if correction is None else correction), 0)
    variance = emit(relax.op.divide(squares, relax.const(degrees, exact)))
    if not named.get("keepdim"):
        variance, mean = (emit(relax.op.squeeze(value, axes)) for value in (variance, mean))
    return emit(relax.Tuple([emit(relax.op.astype(value, dtype)) for value in (variance, mean)]))


ELEMENT_WISE = {
    **dict.fromkeys(("any.default", "any.dim", "any.dims"), any_of),
    **dict.fromkeys(("clamp.default", "clamp.Tensor"), clamp),
    **dict.fromkeys(("clamp_max.default", "clamp_max.Tensor"), clamp),
    **dict.fromkeys(("clamp_min.default", "clamp_min.Tensor"), clamp),
    "div.Tensor_mode": divide_rounded,
    **dict.fromkeys(("prod.default", "prod.dim_int"), product),
    "var_mean.correction": variance_and_mean,
}
"""Go before TVM's."""
