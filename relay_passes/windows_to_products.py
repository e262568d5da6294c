"""Convolutions of long strides as dense products of their windows, for CPUs."""

from __future__ import annotations

import math

import numpy as np
import tvm
from tvm import relax
from tvm import tirx as tir
from tvm.relax.expr_functor import PyExprMutator, mutator

from tbn_tvm import op
from tbn_tvm.relay_passes._match import rewrite_functions
from tbn_tvm.schedules.cpu.conv import MAX_PHASES
from tbn_tvm.schedules.reference import Window

_CONVS = (op.TILED_CONV1D, op.TILED_CONV2D)


@tvm.transform.module_pass(opt_level=0, name="WindowsToProducts")
class WindowsToProducts:
    """Rewrite tiled convolutions that share few pixels among windows to ``tiled_dense``.

    Those of which a kernel for convolutions would have to copy the image in more than
    :data:`tbn_tvm.schedules.cpu.conv.MAX_PHASES` phases: the patches that vision transformers
    begin with, filter banks over a signal. Windows become rows of a matrix; a convolution's
    weights, flattened, are those of the product, and so are its tile, alphas and bias. One group
    and known extents only.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return rewrite_functions(mod, _Rewriter(mod))


@mutator
class _Rewriter(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if not op.is_product(call) or call.op.name not in _CONVS:
            return call
        attrs, window = op.attributes(call), op.window_of(call)
        x, tile, alpha, *bias = call.args
        samples, _channels, *extents = x.ty.shape.values
        if attrs["groups"] != 1 or window.phases <= MAX_PHASES:
            return call
        if not all(isinstance(extent, tir.IntImm) for extent in extents):
            return call
        rows = self._rows(x, [int(extent) for extent in extents], window)
        product = op.tiled_dense(
            rows, tile, alpha, *bias, out_features=attrs["out_channels"], p=attrs["p"]
        )
        product = self.builder_.emit(product)
        outputs = window.output_extents([int(extent) for extent in extents])
        split = relax.op.reshape(product, (samples, *outputs, attrs["out_channels"]))
        rank = len(outputs)
        return relax.op.permute_dims(self.builder_.emit(split), [0, rank + 1, *range(1, rank + 1)])

    def _rows(self, x: relax.Expr, extents: list[int], window: Window) -> relax.Expr:
        """All windows, ``(samples, windows, channels * taps)``."""
        emit, rank = self.builder_.emit, len(extents)
        samples, channels = x.ty.shape.values[:2]
        outputs = [int(extent) for extent in window.output_extents(extents)]
        if any(window.padding):
            sides = [(window.padding[i], window.padding[rank + i]) for i in range(rank)]
            widths = [0] * 4 + [width for side in sides for width in side]
            x = emit(relax.op.nn.pad(x, widths))
            extents = [e + sum(side) for e, side in zip(extents, sides, strict=True)]
        for axis, extent in enumerate(extents):
            starts = np.arange(outputs[axis])[:, None] * window.strides[axis]
            taps = np.arange(window.kernel[axis]) * window.dilation[axis]
            places = (starts + taps).reshape(-1)
            if not np.array_equal(places, np.arange(extent)):
                x = emit(relax.op.take(x, relax.const(places, "int64"), axis + 2, mode="clip"))
        pairs = [part for axis in range(rank) for part in (outputs[axis], window.kernel[axis])]
        x = emit(relax.op.reshape(x, (samples, channels, *pairs)))
        order = [0, *range(2, 2 * rank + 2, 2), 1, *range(3, 2 * rank + 2, 2)]
        x = emit(relax.op.permute_dims(x, order))
        length = int(channels) * math.prod(window.kernel)
        return emit(relax.op.reshape(x, (samples, math.prod(outputs), length)))
