"""A convolution's input as a matrix of windows, which the dense kernels multiply."""

from __future__ import annotations

import math

from tbn_tvm.schedules.reference import SCHEDULED, Window
from tvm import s_tir, te
from tvm import tirx as tir


def prim_func(shape, window: Window) -> tir.PrimFunc:
    """The kernel ``(x, columns)``.

    Parameters
    ----------
    shape : sequence
        Of ``x``, float32 ``(B, C, *spatial)``; only ``B`` may be symbolic.
    window : Window
        Kernel, strides, padding and dilation.

    Returns
    -------
    tvm.tirx.PrimFunc
        ``columns`` is float32 ``(B, positions, C * taps)``: row ``position`` holds the window at
        that output position, zeros where it hangs over the edge.
    """
    batch, channels, *extents = (
        int(extent) if isinstance(extent, (int, tir.IntImm)) else extent for extent in shape
    )
    rank, taps = len(extents), math.prod(window.kernel)
    outputs = window.output_extents(extents)
    x = te.placeholder((batch, channels, *extents), "float32", "x")

    def element(b, position, k):
        channel, tap = k // taps, k % taps
        source = []
        for axis in reversed(range(rank)):
            at = position % outputs[axis] * window.strides[axis] - window.padding[axis]
            source.insert(0, at + tap % window.kernel[axis] * window.dilation[axis])
            position, tap = position // outputs[axis], tap // window.kernel[axis]
        value = x(b, channel, *source)
        if not any(window.padding):
            return value
        inside = tir.all(
            *(tir.all(at >= 0, at < extent) for at, extent in zip(source, extents, strict=True))
        )
        return tir.if_then_else(inside, value, tir.const(0, "float32"))

    columns = te.compute((batch, math.prod(outputs), channels * taps), element, name="columns")
    sch = s_tir.Schedule(te.create_prim_func([x, columns]))
    b, position, _ = sch.get_loops(sch.get_sblock("columns"))
    sch.parallel(sch.fuse(b, position))
    return sch.mod["main"].without_attr("global_symbol").with_attr(SCHEDULED, True)
