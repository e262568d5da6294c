"""Operators on quantised tensors, exactly as ONNX's reference evaluator computes them."""

from __future__ import annotations

import math

import numpy as np
import tvm
from onnx import helper
from tvm import relax
from tvm import tirx as tir

_RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}
"""Of what is quantised at run time; narrower types are stored only."""


def _dtype(x: relax.Expr) -> str:
    return x.ty.dtype.dtype


def _as(bb, x: relax.Expr, dtype: str) -> relax.Expr:
    return x if _dtype(x) == dtype else bb.normalize(relax.op.astype(x, dtype))


def _range_of(dtype: str) -> tuple[int, int]:
    if dtype not in _RANGES:
        raise ValueError(
            f"quantising to {dtype} at run time is not supported: expected one of "
            f"{', '.join(_RANGES)}; constants of narrower types are"
        )
    return _RANGES[dtype]


def _extents(x: relax.Expr) -> list[int | None]:
    return [int(e) if isinstance(e, tir.IntImm) else None for e in x.ty.shape.values]


def _is_one(x: relax.Expr) -> bool:
    return all(extent == 1 for extent in _extents(x))


def _scalar(bb, x: relax.Expr) -> relax.Expr:
    """One element as a tensor of no axes, which broadcasts to anything."""
    return bb.normalize(relax.op.reshape(x, relax.ShapeExpr([]))) if _extents(x) else x


def _spread(bb, given: relax.Expr, x: relax.Expr, axis: int, block: int) -> relax.Expr:
    """A scale or zero point as broadcasts to ``x``: one for all, one an index of an axis, or one
    a block along it."""
    extents, wanted = _extents(given), _extents(x)
    if not block and _is_one(given) and len(extents) <= 1:
        return _scalar(bb, given)
    if not -len(wanted) <= axis < len(wanted):
        raise ValueError(f"axis {axis} of {len(wanted)}")
    axis %= len(wanted)
    if not block:
        if len(extents) != 1 or extents[0] is None or extents[0] != wanted[axis]:
            raise ValueError(f"a scale of shape {extents} along axis {axis} of {wanted}")
        shape = [1] * len(wanted)
        shape[axis] = extents[0]
        return bb.normalize(relax.op.reshape(given, relax.ShapeExpr(shape)))
    size = wanted[axis]
    if size is None or len(extents) != len(wanted) or extents[axis] != math.ceil(size / block):
        raise ValueError(f"a scale of shape {extents} for blocks of {block} of {wanted}")
    others = [at for at in range(len(wanted)) if at != axis]
    if any(wanted[at] is None or extents[at] != wanted[at] for at in others):
        raise ValueError(f"a scale of shape {extents} for blocks of {block} of {wanted}")
    # A last block that is filled up may be of any size.
    block = min(block, size)
    if isinstance(given, tvm.ir.GenericConst):
        held = np.repeat(given.value.numpy(), block, axis)
        return relax.const(held[(slice(None),) * axis + (slice(size),)], _dtype(given))
    repeated = bb.normalize(relax.op.repeat(given, block, axis))
    return bb.normalize(relax.op.strided_slice(repeated, [axis], [0], [size]))


def _rounded(bb, x: relax.Expr, zero: relax.Expr | None, dtype: str, after: bool) -> relax.Expr:
    """The nearest integers, ties to even, shifted by a zero point after or before it, within the
    range of ``dtype``; nothing overflows on its way there."""
    low, high = _range_of(dtype)
    made = bb.normalize(relax.op.round(x)) if after else x
    if zero is not None:
        made = bb.normalize(relax.op.add(made, _as(bb, zero, _dtype(x))))
    if not after:
        made = bb.normalize(relax.op.round(made))
    made = bb.normalize(relax.op.clip(made, tir.IntImm("int64", low), tir.IntImm("int64", high)))
    return relax.op.astype(made, dtype)


def _named(attrs: dict, name: str) -> str | None:
    """An element type that an attribute names, None where it names none."""
    number = attrs.get(name, 0)
    return str(np.dtype(helper.tensor_dtype_to_np_dtype(number))) if number else None


def _quantize_linear(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    x, scale, zero = (*inputs, None)[:3]
    named = _named(attrs, "output_dtype")
    dtype = named or "uint8"
    if zero is not None:
        dtype = _dtype(zero)
        if named not in (None, dtype):
            raise ValueError(f"output_dtype {named}, and the zero point is {dtype}")
    _range_of(dtype)
    # NumPy's type of a quotient.
    kinds = {_dtype(x), _dtype(scale)}
    wide = "float64" if "int32" in kinds else "float32"
    precision = _named(attrs, "precision") or (kinds.pop() if len(kinds) == 1 else wide)
    axis, block = attrs.get("axis", 1), attrs.get("block_size", 0)
    scale = _spread(bb, scale, x, axis, block)
    quotient = relax.op.divide(_as(bb, x, precision), _as(bb, scale, precision))
    # Sums with zero points are exact in float32, which 16-bit floats are not enough for.
    exact = precision if precision in ("float32", "float64") else "float32"
    quotient = _as(bb, bb.normalize(quotient), exact)
    zero = None if zero is None else _spread(bb, zero, x, axis, block)
    return _rounded(bb, quotient, zero, dtype, after=True)


def _dequantize_linear(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    x, scale, zero = (*inputs, None)[:3]
    axis, block = attrs.get("axis", 1), attrs.get("block_size", 0)
    # As NumPy has it: a float32 less an int32 is a float64.
    wide = "float64" if zero is not None and _dtype(zero) == "int32" else "float32"
    made = _as(bb, _as(bb, x, "float32"), wide)
    if zero is not None:
        zero = _spread(bb, zero, x, axis, block)
        made = bb.normalize(relax.op.subtract(made, _as(bb, zero, wide)))
    factor = _as(bb, _spread(bb, scale, x, axis, block), wide)
    made = bb.normalize(relax.op.multiply(made, factor))
    return _as(bb, made, _named(attrs, "output_dtype") or _dtype(scale))


def _dynamic_quantize_linear(bb, inputs, _attrs: dict, _opset: int) -> relax.Expr:
    """To uint8, of a range that holds zero."""
    x = inputs[0]
    zero = relax.const(0, "float32")
    most = bb.emit(relax.op.maximum(bb.emit(relax.op.max(x)), zero))
    least = bb.emit(relax.op.minimum(bb.emit(relax.op.min(x)), zero))
    width = bb.emit(relax.op.subtract(most, least))
    none = bb.emit(relax.op.equal(most, least))
    width = bb.emit(relax.op.where(none, relax.const(1, "float32"), width))
    scale = bb.emit(relax.op.divide(width, relax.const(255, "float32")))
    first = relax.op.negative(bb.emit(relax.op.divide(least, scale)))
    first = bb.emit(relax.op.clip(bb.emit(first), tir.IntImm("int64", 0), tir.IntImm("int64", 255)))
    shift = bb.emit(relax.op.round(first))
    made = _rounded(bb, bb.emit(relax.op.divide(x, scale)), shift, "uint8", after=True)
    return relax.Tuple([bb.emit(made), scale, bb.emit(relax.op.astype(shift, "uint8"))])


# -- products -------------------------------------------------------------------------------


def _centred(bb, x: relax.Expr, zero: relax.Expr | None, shape: list[int] | None) -> relax.Expr:
    """Less its zero point, in int32; of as many zero points as ``shape`` says."""
    wide = _as(bb, x, "int32")
    if zero is None:
        return wide
    zero = _as(bb, zero, "int32")
    zero = _scalar(bb, zero) if shape is None else _reshaped(bb, zero, shape)
    return bb.normalize(relax.op.subtract(wide, zero))


def _reshaped(bb, x: relax.Expr, shape: list[int]) -> relax.Expr:
    return bb.normalize(relax.op.reshape(x, relax.ShapeExpr(shape)))


def _row_shape(given: relax.Expr | None, x: relax.Expr, what: str) -> list[int] | None:
    """How one number a row of a product's first operand, or a column of the second, broadcasts;
    None where there is one for all."""
    if given is None or _is_one(given):
        return None
    extents, wanted = _extents(given), _extents(x)
    at = -2 if what == "row" else -1
    if len(wanted) < 2 or extents[0 if len(extents) == 1 else at] != wanted[at]:
        raise ValueError(f"numbers of shape {extents} for the {what}s of {wanted}")
    if len(extents) == 1:
        return [extents[0], 1] if what == "row" else extents
    ones = extents[-1 if what == "row" else -2]
    if len(extents) != len(wanted) or ones != 1 or None in extents:
        raise ValueError(f"numbers of shape {extents} for the {what}s of {wanted}")
    return extents


def _integer_product(bb, a, b, a_zero, b_zero) -> relax.Expr:
    a = _centred(bb, a, a_zero, _row_shape(a_zero, a, "row"))
    b = _centred(bb, b, b_zero, _row_shape(b_zero, b, "column"))
    return bb.normalize(relax.op.matmul(a, b, out_dtype="int32"))


def _matmul_integer(bb, inputs, _attrs: dict, _opset: int) -> relax.Expr:
    return _integer_product(bb, *(*inputs, None, None)[:4])


def _requantized(bb, x: relax.Expr, factor: relax.Expr, zero: relax.Expr) -> relax.Expr:
    """A product's sums on the output's scale, in float64, which holds them all."""
    if not _is_one(zero):
        raise ValueError("a zero point for each row of the output is not supported")
    made = bb.normalize(relax.op.multiply(_as(bb, x, "float64"), _as(bb, factor, "float64")))
    return _rounded(bb, made, _scalar(bb, zero), _dtype(zero), after=False)


def _qlinear_matmul(bb, inputs, _attrs: dict, _opset: int) -> relax.Expr:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = inputs
    if not _is_one(y_scale):
        raise ValueError("a scale for each row of the output is not supported")
    product = _integer_product(bb, a, b, a_zero, b_zero)
    rows, columns = _row_shape(a_scale, a, "row"), _row_shape(b_scale, b, "column")
    a_scale = _scalar(bb, a_scale) if rows is None else _reshaped(bb, a_scale, rows)
    b_scale = _scalar(bb, b_scale) if columns is None else _reshaped(bb, b_scale, columns)
    factor = bb.normalize(relax.op.multiply(a_scale, b_scale))
    factor = bb.normalize(relax.op.divide(factor, _scalar(bb, y_scale)))
    return _requantized(bb, product, factor, y_zero)


def _integer_convolution(bb, x, w, x_zero, w_zero, attrs: dict) -> relax.Expr:
    """Sums in int32; what is padded is the zero point."""
    spatial = len(_extents(x)) - 2
    build = {1: relax.op.nn.conv1d, 2: relax.op.nn.conv2d, 3: relax.op.nn.conv3d}.get(spatial)
    if build is None:
        raise ValueError(f"convolutions over {spatial} axes are not supported")
    if x_zero is not None and not _is_one(x_zero):
        raise ValueError("a zero point for each channel of the input is not supported")
    shape = None
    if w_zero is not None and not _is_one(w_zero):
        if _extents(w_zero) != _extents(w)[:1]:
            raise ValueError(f"zero points of shape {_extents(w_zero)} for {_extents(w)}")
        shape = [*_extents(w_zero), *[1] * (spatial + 1)]
    strides = list(attrs.get("strides") or [1] * spatial)
    dilations = list(attrs.get("dilations") or [1] * spatial)
    return bb.normalize(
        build(
            _centred(bb, x, x_zero, None),
            _centred(bb, w, w_zero, shape),
            strides=strides,
            padding=_pads(attrs, _extents(x)[2:], _extents(w)[2:], strides, dilations),
            dilation=dilations,
            groups=attrs.get("group", 1),
            out_dtype="int32",
        )
    )


def _pads(attrs: dict, sizes: list, kernel: list, strides: list, dilations: list) -> list[int]:
    """Elements before all axes, then after them."""
    mode = attrs.get("auto_pad", b"NOTSET")
    if list(attrs.get("kernel_shape") or kernel) != kernel:
        raise ValueError(f"kernel_shape {attrs['kernel_shape']}, and W is of {kernel}")
    if mode == b"VALID":
        return [0] * (2 * len(kernel))
    if mode == b"NOTSET":
        return list(attrs.get("pads") or [0] * (2 * len(kernel)))
    if mode not in (b"SAME_UPPER", b"SAME_LOWER") or None in sizes:
        raise ValueError(f"auto_pad {mode.decode(errors='replace')!r} of {sizes} is not supported")
    before, after = [], []
    for size, extent, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        reach = (extent - 1) * dilation + 1
        missing = max(0, (math.ceil(size / stride) - 1) * stride + reach - size)
        less, more = missing // 2, missing - missing // 2
        before.append(less if mode == b"SAME_UPPER" else more)
        after.append(more if mode == b"SAME_UPPER" else less)
    return before + after


def _conv_integer(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    x, w, x_zero, w_zero = (*inputs, None, None)[:4]
    return _integer_convolution(bb, x, w, x_zero, w_zero, attrs)


def _qlinear_conv(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias = (*inputs, None)[:9]
    if not _is_one(x_scale) or not _is_one(y_scale):
        raise ValueError("a scale for each channel of the input or output is not supported")
    sums = _integer_convolution(bb, x, w, x_zero, w_zero, attrs)
    channels, along = _extents(w)[0], [1] * (len(_extents(x)) - 2)
    if bias is not None:
        sums = bb.normalize(relax.op.add(sums, _reshaped(bb, bias, [channels, *along])))
    w_scale = _scalar(bb, w_scale) if _is_one(w_scale) else w_scale
    if _extents(w_scale) not in ([], [channels]):
        raise ValueError(f"scales of shape {_extents(w_scale)} for {channels} channels")
    factor = bb.normalize(relax.op.multiply(_scalar(bb, x_scale), w_scale))
    factor = bb.normalize(relax.op.divide(factor, _scalar(bb, y_scale)))
    if _extents(w_scale):
        factor = _reshaped(bb, factor, [channels, *along])
    return _requantized(bb, sums, factor, y_zero)


QUANTIZED = {
    "ConvInteger": _conv_integer,
    "DequantizeLinear": _dequantize_linear,
    "DynamicQuantizeLinear": _dynamic_quantize_linear,
    "MatMulInteger": _matmul_integer,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "QuantizeLinear": _quantize_linear,
}
"""Converters."""
