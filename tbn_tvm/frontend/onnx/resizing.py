"""Resize: what TVM's converter takes for all axes given for some."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm import tirx as tir
from tvm.relax.frontend.onnx.onnx_frontend import Resize


def resize(bb, inputs, attrs: dict, opset: int) -> relax.Expr:
    """Name the region, scales and sizes of every axis, where ``axes`` names some.

    Raises
    ------
    ValueError
        For what TVM's operator does otherwise: filters against aliasing, sizes that a kept ratio
        changes, scales that give no whole size.
    """
    if attrs.get("antialias", 0):
        raise ValueError("antialias is not supported")
    if attrs.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        raise ValueError("keep_aspect_ratio_policy is not supported: give the sizes that it makes")
    x, region, scales, sizes = (inputs[i] for i in range(4))
    extents = list(x.ty.shape.values)
    axes = [axis % len(extents) for axis in attrs.get("axes", range(len(extents)))]
    if len(axes) < len(extents) or axes != sorted(axes):
        region = _regions(region, axes, len(extents))
        scales = _for_all(scales, axes, [1.0] * len(extents), "float32")
        sizes = _for_all(sizes, axes, extents, "int64")
    if scales is not None:
        _check(scales, extents)
    return Resize.get_converter(opset)(bb, [x, region, scales, sizes], attrs, ({}, {}))


def _for_all(given, axes: list[int], values: list, dtype: str):
    if given is None:
        return None
    values = list(values)
    for axis, value in zip(axes, _constant(given).tolist(), strict=True):
        values[axis] = value
    return relax.const(np.array([_number(value) for value in values]), dtype)


def _number(value) -> float:
    if isinstance(value, (int, float, tir.IntImm)):
        return float(value if isinstance(value, (int, float)) else int(value))
    raise ValueError(f"sizes beside an axis of free size ({value}): give scales")


def _regions(region, axes: list[int], rank: int):
    """Starts and ends of every axis."""
    if region is None or not _constant(region).size:
        return region
    starts, ends = np.zeros(rank), np.ones(rank)
    starts[axes], ends[axes] = np.split(_constant(region), 2)
    return relax.const(np.concatenate([starts, ends]), "float32")


def _constant(value) -> np.ndarray:
    if not isinstance(value, tvm.ir.GenericConst):
        raise ValueError("region, scales and sizes must be constant where axes are given")
    return value.value.numpy()


def _check(scales, extents: list) -> None:
    """TVM goes by the ratio of sizes, ONNX by the scale."""
    if not isinstance(scales, tvm.ir.GenericConst):
        raise ValueError("scales must be constant")
    for axis, factor in enumerate(scales.value.numpy().tolist()):
        extent = extents[axis]
        if factor == 1.0:
            continue
        if not isinstance(extent, tir.IntImm) or (int(extent) * factor) % 1:
            raise ValueError(f"a scale of {factor} on axis {axis} of {extent} gives no whole size")
