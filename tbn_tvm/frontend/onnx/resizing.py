"""Resize: what TVM's converter takes for all axes given for some."""

from __future__ import annotations

import numpy as np
import tvm
import tvm_ffi
from tvm import relax
from tvm import tirx as tir
from tvm.relax.frontend.onnx.onnx_frontend import Resize

_LEADING = 2
"""Axes that TVM takes for batch and channels, and never resizes."""


def resize(bb, inputs, attrs: dict, opset: int) -> relax.Expr:
    """Name the region, scales and sizes of every axis, where ``axes`` names some.

    Raises
    ------
    ValueError
        For what TVM's operator does otherwise: filters against aliasing, sizes that a kept ratio
        changes, scales that give no whole size, and anything but the whole of the first two axes.
    """
    if attrs.get("antialias", 0):
        raise ValueError("antialias is not supported")
    if attrs.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        raise ValueError("keep_aspect_ratio_policy is not supported: give the sizes that it makes")
    x, region, scales, sizes = (_given(inputs[i]) for i in range(4))
    extents = [int(e) if isinstance(e, tir.IntImm) else e for e in x.ty.shape.values]
    axes = [axis % len(extents) for axis in attrs.get("axes", range(len(extents)))]
    if scales is not None:
        scales = _scales(scales, axes, extents)
    if sizes is not None:
        sizes = _sizes(sizes, axes, extents)
    mode = attrs.get("coordinate_transformation_mode", b"half_pixel")
    region = _region(region, axes, len(extents)) if mode == b"tf_crop_and_resize" else None
    single = []
    if mode in (b"align_corners", b"tf_crop_and_resize"):
        single = _doubled(extents, region, scales, sizes)
    given = [
        value if value is None else relax.const(np.array(value), dtype)
        for value, dtype in ((region, "float32"), (scales, "float32"), (sizes, "int64"))
    ]
    result = Resize.get_converter(opset)(bb, [x, *given], attrs, ({}, {}))
    for axis in single:
        result = relax.op.strided_slice(bb.emit(result), [axis], [0], [1])
    return result


def _given(value):
    empty = isinstance(value, tvm.ir.GenericConst) and not value.value.numpy().size
    return None if empty else value


def _constant(value) -> list:
    if not isinstance(value, tvm.ir.GenericConst):
        raise ValueError("region, scales and sizes must be constant")
    return value.value.numpy().tolist()


def _scales(given, axes: list[int], extents: list) -> list[float]:
    """TVM goes by the ratio of sizes, ONNX by the scale."""
    scales = [1.0] * len(extents)
    for axis, factor in zip(axes, _constant(given), strict=True):
        scales[axis], extent = factor, extents[axis]
        if factor == 1.0:
            continue
        if axis < _LEADING:
            raise ValueError(f"a scale of {factor} on axis {axis}: expected 1 on the first two")
        # A float32 just below what it stands for gives one element less, or not: tools differ.
        size = int(extent * factor) if isinstance(extent, int) else 0
        if not size or extent * factor - size > size * np.finfo(np.float32).eps:
            raise ValueError(f"a scale of {factor} on axis {axis} of {extent} gives no whole size")
    return scales


def _sizes(given, axes: list[int], extents: list) -> list[int]:
    sizes = list(extents)
    values = given.values if isinstance(given, relax.ShapeExpr) else _constant(given)
    for axis, size in zip(axes, values, strict=True):
        size = int(size) if isinstance(size, tir.IntImm) else size
        if axis < _LEADING and not tvm_ffi.structural_equal(size, extents[axis]):
            raise ValueError(
                f"a size of {size} on axis {axis} of {extents[axis]}: expected the first two as "
                "they are"
            )
        sizes[axis] = size
    for size in sizes[_LEADING:]:
        if not isinstance(size, int):
            raise ValueError(f"sizes beside an axis of free size ({size}): give scales")
    return [1] * _LEADING + sizes[_LEADING:]


def _region(given, axes: list[int], rank: int) -> list[float]:
    """Starts and ends of every axis."""
    if given is None:
        raise ValueError("tf_crop_and_resize without a region")
    values = _constant(given)
    if len(values) != 2 * len(axes):
        raise ValueError(f"a region of {len(values)} numbers: expected {2 * len(axes)}")
    region = [0.0] * rank + [1.0] * rank
    for axis, start, end in zip(axes, values[: len(axes)], values[len(axes) :], strict=True):
        if axis < _LEADING and (start, end) != (0.0, 1.0):
            raise ValueError(
                f"a region from {start:g} to {end:g} of axis {axis}: expected 0 to 1 of the "
                "first two"
            )
        region[axis], region[rank + axis] = start, end
    return region


def _doubled(extents: list, region: list | None, scales: list | None, sizes: list | None) -> list:
    """Have two elements where one is asked for, the first of which is that one; name the axes.

    TVM divides by one less than the elements asked for.
    """
    single = []
    for axis in range(_LEADING, len(extents)):
        extent = extents[axis]
        if sizes is not None and sizes[axis] == 1:
            sizes[axis] = 2
        elif scales is not None and isinstance(extent, int) and int(extent * scales[axis]) == 1:
            # TVM rounds down.
            scales[axis] = 2.5 / extent
        else:
            continue
        single.append(axis)
        if region is not None:
            start, end = axis, len(extents) + axis
            region[start] = region[end] = (region[start] + region[end]) / 2
    return single
