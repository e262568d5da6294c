"""Resizing of images with antialiasing, for which TVM's importer leaves the antialiasing out."""

from __future__ import annotations

import torch
from torch import fx
from tvm import relax
from tvm import tirx as tir

from tbn_tvm.errors import FormatError


def resize_antialiased(node: fx.Node, importer) -> relax.Var:
    """``_upsample_bilinear2d_aa`` and ``_upsample_bicubic2d_aa`` with constant sizes.

    Such a resize is linear, and goes along one axis after the other: it is two products with
    constant matrices, which PyTorch's own operator gives when it resizes unit vectors.

    Raises
    ------
    FormatError
        Where a size is free.
    """
    overload = node.target
    name = overload.__name__.split(".")[0]
    x, *given = importer.retrieve_args(node)
    shape = list(x.ty.shape.values)
    named = [argument.name for argument in overload._schema.arguments[1:]]
    options = {**dict(zip(named, given, strict=False)), **node.kwargs}
    if "scale_factors" in options:
        scales = options["scale_factors"] or [None, None]
    else:
        scales = [options.get("scales_h"), options.get("scales_w")]
    sizes = options.get("output_size") or [
        int(float(extent) * scale) if isinstance(extent, tir.IntImm) else None
        for extent, scale in zip(shape[-2:], scales, strict=True)
    ]
    if not all(isinstance(extent, (int, tir.IntImm)) for extent in (*shape[-2:], *sizes)):
        raise FormatError(f"{name} of images of free size: export the model with those axes fixed")
    operator = getattr(torch.ops.aten, name).default
    emit, dtype = importer.block_builder.emit, str(x.ty.dtype)
    for axis, extent, size, scale in zip((0, 1), shape[-2:], sizes, scales, strict=True):
        # Along the last axis: PyTorch's operator is wrong for images of one column.
        units = torch.eye(int(extent), dtype=torch.float64)[None, None]
        shape, align = [int(extent), int(size)], bool(options["align_corners"])
        matrix = operator(units, shape, align, None, scale)[0, 0].numpy().astype(dtype)
        if axis == 0:
            x = relax.op.matmul(relax.const(matrix.T.copy(), dtype), x)
        else:
            x = relax.op.matmul(x, relax.const(matrix, dtype))
        x = emit(x)
    return x


ANTIALIASED = {
    f"_upsample_{method}2d_aa.{overload}": resize_antialiased
    for method in ("bilinear", "bicubic")
    for overload in ("default", "vec")
}
"""Go before TVM's."""
