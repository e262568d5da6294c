"""Converters of ONNX operators that TVM's importer gets wrong, or makes what we do not recognise.

A converter takes the block builder, the inputs (None for one left out, of which there may be fewer
than the operator has), attributes as Python values (strings as bytes) and the opset.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm import tirx as tir
from tvm.relax.frontend.onnx.onnx_frontend import Expand, Range, Unsqueeze

from tbn_tvm.frontend.grid_sample import grid_sample
from tbn_tvm.frontend.group_norm import group_norm, instance_norm
from tbn_tvm.frontend.onnx.activations import ACTIVATIONS
from tbn_tvm.frontend.onnx.along_axes import ALONG_AXES
from tbn_tvm.frontend.onnx.arithmetic import ARITHMETIC
from tbn_tvm.frontend.onnx.attention import attention
from tbn_tvm.frontend.onnx.indices import INDEXING
from tbn_tvm.frontend.onnx.losses import LOSSES
from tbn_tvm.frontend.onnx.one_hot import one_hot
from tbn_tvm.frontend.onnx.quantized import QUANTIZED
from tbn_tvm.frontend.onnx.rearranging import REARRANGING
from tbn_tvm.frontend.onnx.recurrent import RECURRENT
from tbn_tvm.frontend.onnx.resizing import resize
from tbn_tvm.frontend.onnx.rotary import rotary_embedding
from tbn_tvm.frontend.onnx.selecting import SELECTING, SELECTING_GUARDS
from tbn_tvm.frontend.onnx.shape_values import is_shape
from tbn_tvm.frontend.onnx.summing import SUMMING
from tbn_tvm.frontend.onnx.transposed_convolution import conv_transpose


def _gemm(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    """``alpha * A @ B + beta * C``; TVM's converter scales A, which hides it from what fuses."""
    a, b, c = inputs[0], inputs[1], inputs[2]
    like = a
    if attrs.get("transA", 0):
        a = relax.op.permute_dims(a)
    if attrs.get("transB", 0):
        b = relax.op.permute_dims(b)
    result = _scaled(relax.op.matmul(a, b), attrs.get("alpha", 1.0), like)
    return result if c is None else relax.op.add(result, _scaled(c, attrs.get("beta", 1.0), like))


def _scaled(value: relax.Expr, factor: float, like: relax.Expr) -> relax.Expr:
    if factor == 1.0:
        return value
    return relax.op.multiply(value, relax.const(factor, like.ty.dtype.dtype))


def _no_training(_inputs, attrs: dict) -> None:
    if attrs.get("training_mode", 0):
        raise ValueError("training_mode is for training")


def _bit_shift(_bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    """Zero where bits are shifted by the width or more, which C leaves open."""
    x, amount = inputs[:2]
    dtype = x.ty.dtype.dtype
    if not dtype.startswith("uint"):
        raise ValueError(f"shifts of {dtype}: only unsigned integers are shifted")
    width = relax.const(int(dtype.removeprefix("uint")), dtype)
    shift = relax.op.left_shift if attrs["direction"] == b"LEFT" else relax.op.right_shift
    last = relax.op.subtract(width, relax.const(1, dtype))
    moved = shift(x, relax.op.minimum(amount, last))
    return relax.op.where(relax.op.less(amount, width), moved, relax.const(0, dtype))


def _pow(_bb, inputs, _attrs: dict, _opset: int) -> relax.Expr:
    """The base's type, as ONNX has it; TVM wants both of one."""
    base, exponent = inputs[:2]
    dtype = base.ty.dtype.dtype
    if "float" not in dtype:
        raise ValueError(f"powers of {dtype} are not supported")
    if exponent.ty.dtype.dtype != dtype:
        exponent = relax.op.astype(exponent, dtype)
    return relax.op.power(base, exponent)


def _expand(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    """To a constant shape, whose extents of 1 keep the input's; TVM's converter fails where those
    are free."""
    x, shape = inputs
    if not isinstance(shape, tvm.ir.GenericConst):
        return Expand._impl_v13(bb, inputs, attrs, {})
    wanted = [int(extent) for extent in shape.value.numpy().tolist()]
    extents = list(x.ty.shape.values)
    rank = max(len(wanted), len(extents))
    wanted = [1] * (rank - len(wanted)) + wanted
    extents = [tir.IntImm("int64", 1)] * (rank - len(extents)) + extents
    result = []
    for extent, size in zip(extents, wanted, strict=True):
        if size != 1 and isinstance(extent, tir.IntImm) and int(extent) not in (1, size):
            raise ValueError(f"an extent of {extent} cannot be expanded to {size}")
        result.append(extent if size == 1 else tir.IntImm("int64", size))
    return relax.op.broadcast_to(x, relax.ShapeExpr(result))


def _rms_normalization(_bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    """Over the axes from ``axis`` on; TVM's operator fails to lower where those are all."""
    x, gain = inputs[:2]
    rank, dtype = len(x.ty.shape.values), x.ty.dtype.dtype
    axis = attrs.get("axis", -1)
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} of {rank}")
    exact = relax.op.astype(x, "float32") if dtype in ("float16", "bfloat16") else x
    axes = list(range(axis % rank, rank))
    square = relax.op.mean(relax.op.multiply(exact, exact), axes, keepdims=True)
    epsilon = relax.const(attrs.get("epsilon", 1e-5), exact.ty.dtype.dtype)
    unit = relax.op.multiply(exact, relax.op.rsqrt(relax.op.add(square, epsilon)))
    return relax.op.multiply(relax.op.astype(unit, dtype), gain)


def _group_normalization(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    """As of opset 21, with a scale and a shift for each channel; before, ONNX deprecates it."""
    if attrs.get("stash_type", 1) != 1:
        raise ValueError(f"stash_type {attrs['stash_type']} is not supported")
    return group_norm(bb.emit, *inputs[:3], attrs["num_groups"], attrs.get("epsilon", 1e-5))


def _instance_normalization(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    """TVM's converter sums 16-bit floats as such, and those of a large image overflow."""
    axes = list(range(2, inputs[0].ty.ndim))
    return instance_norm(bb.emit, *inputs[:3], axes, attrs.get("epsilon", 1e-5))


def _unsqueeze(bb, inputs, attrs: dict, opset: int) -> relax.Expr:
    """Of one axis that is no list, too, as ONNX's own definitions have it."""
    x, axes = inputs
    if isinstance(axes, tvm.ir.GenericConst):
        axes = relax.const(axes.value.numpy().reshape(-1), "int64")
    return Unsqueeze.get_converter(opset)(bb, [x, axes], attrs, ({}, {}))


def _range(bb, inputs, attrs: dict, opset: int) -> relax.Expr:
    """Numbers up to a free extent, too, of which TVM's converter makes one that only data knows."""
    start, limit, step = inputs
    counts = [c.value.numpy().item() for c in (start, step) if isinstance(c, tvm.ir.GenericConst)]
    if is_shape(limit) and counts == [0, 1]:
        return relax.op.arange(limit, dtype="int64")
    return Range.get_converter(opset)(bb, inputs, attrs, ({}, {}))


_GRID_METHODS = {"linear": "bilinear", "cubic": "bicubic"}
"""PyTorch's names of what ONNX calls otherwise since opset 20."""


def _grid_sample(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    method = attrs.get("mode", b"linear").decode(errors="replace")
    method = _GRID_METHODS.get(method, method)
    padding = attrs.get("padding_mode", b"zeros").decode(errors="replace")
    return grid_sample(
        bb.emit, inputs[0], inputs[1], method, padding, bool(attrs.get("align_corners", 0))
    )


def _only_mode(mode: bytes):
    def guard(_inputs, attrs: dict) -> None:
        if attrs.get("mode", mode) != mode:
            raise ValueError(f"mode {attrs['mode'].decode(errors='replace')!r} is not supported")

    return guard


CONVERTERS = {
    "Attention": attention,
    "BitShift": _bit_shift,
    "ConvTranspose": conv_transpose,
    "Expand": _expand,
    "Gemm": _gemm,
    "GridSample": _grid_sample,
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "OneHot": one_hot,
    "Pow": _pow,
    "Range": _range,
    "Resize": resize,
    "RMSNormalization": _rms_normalization,
    "RotaryEmbedding": rotary_embedding,
    "Unsqueeze": _unsqueeze,
    **ACTIVATIONS,
    **ALONG_AXES,
    **ARITHMETIC,
    **INDEXING,
    **LOSSES,
    **QUANTIZED,
    **REARRANGING,
    **RECURRENT,
    **SELECTING,
    **SUMMING,
}
"""Go before TVM's."""

GUARDS = {
    "BatchNormalization": _no_training,
    "RoiAlign": _only_mode(b"avg"),
    **SELECTING_GUARDS,
}
"""Refuse uses of operators that TVM's converters get wrong; take inputs and attributes."""
