"""The tile-reuse operators of the graph IR.

``relax.tbn.tiled_dense(x, tile, alpha[, bias])``
    ``x``: float ``(..., n)``; ``tile``: uint8 ``(ceil(q / 8),)``; ``alpha``: float32 ``(k,)``;
    ``bias``: float ``(m,)``. Attributes: ``out_features`` (m), ``p``.
``relax.tbn.tiled_conv1d``, ``relax.tbn.tiled_conv2d`` ``(x, tile, alpha[, bias])``
    ``x``: float ``(B, C, *spatial)``. Attributes: ``out_channels``, ``p``, ``kernel_size``,
    ``strides``, ``padding`` (before each axis, then after each), ``dilation``, ``groups``.
``relax.tbn.tiled_weight(tile, alpha)``
    The dense weight itself. Attributes: ``shape``, ``p``. It marks a recognised constant until
    its user is rewritten; lowering it expands the weight.

``q = m * n / p``. ``alpha`` has 1, p or, once batch norm is folded into it, m or more entries
(see :class:`tbn_tvm.schedules.reference.AlphaLayout`). Importing this module registers the
operators; they legalise under ``relax.transform.LegalizeOps``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tvm
from tvm import relax, te
from tvm import tirx as tir

from tbn_tvm._tvm import check_pair
from tbn_tvm.schedules import reference
from tbn_tvm.schedules.reference import AlphaLayout, Product, Window
from tbn_tvm.tiling import Geometry

check_pair()

TILED_DENSE = "relax.tbn.tiled_dense"
TILED_CONV1D = "relax.tbn.tiled_conv1d"
TILED_CONV2D = "relax.tbn.tiled_conv2d"
TILED_WEIGHT = "relax.tbn.tiled_weight"
PRODUCTS = (TILED_DENSE, TILED_CONV1D, TILED_CONV2D)

_FLOATS = ("float16", "bfloat16", "float32", "float64")


def tiled_dense(
    x: relax.Expr,
    tile: relax.Expr,
    alpha: relax.Expr,
    bias: relax.Expr | None = None,
    *,
    out_features: int,
    p: int,
) -> relax.Call:
    """A linear layer with a tiled weight of shape ``(out_features, x.shape[-1])``."""
    return _call(TILED_DENSE, (x, tile, alpha, bias), out_features=out_features, p=p)


def tiled_conv1d(
    x: relax.Expr, tile: relax.Expr, alpha: relax.Expr, bias: relax.Expr | None = None, **attributes
) -> relax.Call:
    """A 1-d convolution, NCW; keyword arguments as :func:`tiled_conv2d` with one axis."""
    return _conv(TILED_CONV1D, (x, tile, alpha, bias), **attributes)


def tiled_conv2d(
    x: relax.Expr, tile: relax.Expr, alpha: relax.Expr, bias: relax.Expr | None = None, **attributes
) -> relax.Call:
    """A 2-d convolution, NCHW, with a weight of shape ``(out_channels, C / groups, *kernel)``.

    Parameters
    ----------
    x, tile, alpha, bias : relax.Expr
        See the module.
    out_channels, p : int
        Keyword only.
    kernel_size : sequence of int
        Keyword only.
    strides, dilation : sequence of int
        Default 1.
    padding : sequence of int
        One value an axis, or two (all befores, then all afters). Default 0.
    groups : int
        Default 1.
    """
    return _conv(TILED_CONV2D, (x, tile, alpha, bias), **attributes)


def tiled_weight(
    tile: relax.Expr, alpha: relax.Expr, *, shape: Sequence[int], p: int
) -> relax.Call:
    """The dense float32 weight of the given shape."""
    return _call(TILED_WEIGHT, (tile, alpha), shape=list(shape), p=p)


def _conv(
    name: str,
    args: tuple,
    *,
    out_channels: int,
    kernel_size: Sequence[int],
    p: int,
    strides: Sequence[int] | None = None,
    padding: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
    groups: int = 1,
) -> relax.Call:
    rank = len(kernel_size)
    padding = list(padding or [0] * rank)
    return _call(
        name,
        args,
        out_channels=out_channels,
        p=p,
        kernel_size=list(kernel_size),
        strides=list(strides or [1] * rank),
        padding=padding * 2 if len(padding) == rank else padding,
        dilation=list(dilation or [1] * rank),
        groups=groups,
    )


def _call(name: str, args: Sequence[relax.Expr | None], **attributes) -> relax.Call:
    return relax.Call(
        tvm.ir.Op.get(name),
        [arg for arg in args if arg is not None],
        tvm.ir.make_node("ir.DictAttrs", **attributes),
    )


# -- what a call means ----------------------------------------------------------------------


def is_product(expr: relax.Expr) -> bool:
    """Whether an expression is a call of one of the tiled products."""
    return (
        isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op) and expr.op.name in PRODUCTS
    )


def attributes(call: relax.Call) -> dict:
    """The call's attributes as plain Python values."""
    return {name: _plain(call.attrs[name]) for name in list(call.attrs.keys())}


def output_rows(call: relax.Call) -> int:
    """Output features or channels of a tiled product."""
    attrs = attributes(call)
    return attrs["out_features"] if call.op.name == TILED_DENSE else attrs["out_channels"]


def window_of(call: relax.Call) -> Window:
    """The window of a tiled convolution."""
    attrs = attributes(call)
    return Window(*(tuple(attrs[k]) for k in ("kernel_size", "strides", "padding", "dilation")))


def product_of(call: relax.Call) -> Product:
    """What a tiled product multiplies; the call must be normalised.

    Raises
    ------
    ValueError
        Where shapes contradict one another, naming what was given and expected.
    """
    name, attrs = call.op.name.removeprefix("relax."), attributes(call)
    if len(call.args) not in (3, 4):
        raise ValueError(f"{name}: {len(call.args)} arguments: expected x, tile, alpha[, bias]")
    x, tile, alpha, *bias = (_tensor_type(name, arg) for arg in call.args)
    if str(x.dtype) not in _FLOATS:
        raise ValueError(f"{name}: x has dtype {x.dtype}: expected one of {', '.join(_FLOATS)}")
    x_shape = _shape(name, "x", x)
    m, p, groups = output_rows(call), attrs["p"], attrs.get("groups", 1)
    if call.op.name == TILED_DENSE:
        if not x_shape:
            raise ValueError(f"{name}: x is a scalar: expected shape (..., n)")
        n = _static(name, "the last axis of x", x_shape[-1])
    else:
        rank = len(attrs["kernel_size"])
        if len(x_shape) != rank + 2:
            raise ValueError(
                f"{name}: x has shape {_show(x_shape)}: expected {rank + 2} axes (batch, channels, "
                f"{rank} spatial)"
            )
        channels = _static(name, "the channel axis of x", x_shape[1])
        if channels % groups or m % groups:
            raise ValueError(
                f"{name}: groups = {groups} does not divide {channels} input and {m} output "
                "channels"
            )
        n = channels // groups * math.prod(attrs["kernel_size"])
    if p < 1 or m * n % p:
        raise ValueError(
            f"{name}: p = {p} does not divide the {m} x {n} = {m * n} weights, so the tile length "
            "is not a whole number"
        )
    geometry = Geometry(m, n, m * n // p)
    _expect_vector(name, "tile", tile, (geometry.q + 7) // 8, ("uint8",))
    alpha_shape = _shape(name, "alpha", alpha)
    if len(alpha_shape) != 1 or str(alpha.dtype) not in _FLOATS:
        raise ValueError(
            f"{name}: alpha is {alpha.dtype} of shape {_show(alpha_shape)}: expected a float vector"
        )
    count = _static(name, "alpha", alpha_shape[0])
    try:
        AlphaLayout.of(geometry, count)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if bias:
        _expect_vector(name, "bias", bias[0], m, _FLOATS)
    return Product(geometry, count, groups)


def _infer_dense(call: relax.Call, _ctx) -> relax.TensorType:
    product = product_of(call)
    x = call.args[0].ty
    return relax.TensorType([*x.shape.values[:-1], product.geometry.m], x.dtype)


def _infer_conv(call: relax.Call, _ctx) -> relax.TensorType:
    product, window = product_of(call), window_of(call)
    x = call.args[0].ty
    batch, _, *extents = x.shape.values
    out = window.output_extents(extents)
    for extent, made in zip(extents, out, strict=True):
        if isinstance(made, (int, tir.IntImm)) and int(made) < 1:
            raise ValueError(
                f"{call.op.name.removeprefix('relax.')}: a window of {window.kernel} with padding "
                f"{window.padding} does not fit an input extent of {int(extent)}"
            )
    return relax.TensorType([batch, product.geometry.m, *out], x.dtype)


def _infer_weight(call: relax.Call, _ctx) -> relax.TensorType:
    return relax.TensorType(attributes(call)["shape"], "float32")


def _legalize_dense(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    product = product_of(call)

    def compute(x, tile, alpha, bias=None):
        return reference.tiled_dense(x, tile, alpha, bias, product)

    return bb.call_te(compute, *call.args, primfunc_name_hint="tiled_dense")


def _legalize_conv(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    product, window = product_of(call), window_of(call)

    def compute(x, tile, alpha, bias=None):
        return reference.tiled_conv(x, tile, alpha, bias, product, window)

    return bb.call_te(compute, *call.args, primfunc_name_hint=call.op.name.split(".")[-1])


def _legalize_weight(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    attrs = attributes(call)
    shape, p = attrs["shape"], attrs["p"]
    length = math.prod(shape) // p

    def compute(tile, alpha):
        count = int(alpha.shape[0])

        def element(*indices):
            flat = 0
            for index, extent in zip(indices, shape, strict=True):
                flat = flat * extent + index
            scale = alpha(0 if count == 1 else flat // length).astype("float32")
            return reference.signed(tile, flat % length, scale)

        return te.compute(shape, element, name="tiled_weight")

    return bb.call_te(compute, *call.args, primfunc_name_hint="tiled_weight")


def _register() -> None:
    for name, infer, legalize in (
        (TILED_DENSE, _infer_dense, _legalize_dense),
        (TILED_CONV1D, _infer_conv, _legalize_conv),
        (TILED_CONV2D, _infer_conv, _legalize_conv),
        (TILED_WEIGHT, _infer_weight, _legalize_weight),
    ):
        tvm.ir.register_op_attr(name, "FInferType", infer)
        tvm.ir.register_op_attr(name, "FPurity", True)
        tvm.ir.register_op_attr(name, "FLegalize", legalize)
        # The bias is optional: any number of arguments, counted by type inference.
        tvm.ir.Op.get(name).set_num_inputs(2 if name == TILED_WEIGHT else -1)


_register()


# -- type checks ----------------------------------------------------------------------------


def _plain(value):
    if isinstance(value, (str, bool)):
        return value
    if isinstance(value, (int, tir.IntImm)):
        return int(value)
    return [_plain(item) for item in value]


def _tensor_type(name: str, arg: relax.Expr) -> relax.TensorType:
    if not isinstance(arg.ty, relax.TensorType):
        raise ValueError(f"{name}: an argument is {arg.ty}: expected a tensor")
    return arg.ty


def _shape(name: str, what: str, tensor: relax.TensorType) -> list:
    if tensor.shape is None or not isinstance(tensor.shape, relax.ShapeExpr):
        raise ValueError(f"{name}: the shape of {what} is unknown: expected a known rank")
    return list(tensor.shape.values)


def _static(name: str, what: str, extent) -> int:
    if not isinstance(extent, (int, tir.IntImm)):
        raise ValueError(f"{name}: {what} is symbolic ({extent}): expected a number")
    return int(extent)


def _expect_vector(
    name: str, what: str, tensor: relax.TensorType, size: int, dtypes: Sequence[str]
) -> None:
    shape = _shape(name, what, tensor)
    if (
        len(shape) != 1
        or not isinstance(shape[0], (int, tir.IntImm))
        or int(shape[0]) != size
        or str(tensor.dtype) not in dtypes
    ):
        raise ValueError(
            f"{name}: {what} is {tensor.dtype} of shape {_show(shape)}: expected "
            f"{' or '.join(dtypes)} of shape ({size},)"
        )


def _show(shape: Sequence) -> str:
    return (
        "("
        + ", ".join(str(e.value if isinstance(e, tir.IntImm) else e) for e in shape)
        + ("," if len(shape) == 1 else "")
        + ")"
    )
