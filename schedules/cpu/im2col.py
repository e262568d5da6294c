"""A convolution's input as a matrix of windows, which the dense kernels multiply.

Channels are moved last first, so that a window is a few contiguous runs; the tile's columns are
reordered to match when it is laid out, which costs nothing at run time.
"""

from __future__ import annotations

from tvm import s_tir, te
from tvm import tirx as tir

from tbn_tvm.schedules.reference import SCHEDULED, Window


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
        ``columns`` is float32 ``(B, *outputs, *kernel, C)``: at each output position the window
        there, zeros where it hangs over the edge.
    """
    batch, channels, *extents = (
        int(extent) if isinstance(extent, (int, tir.IntImm)) else extent for extent in shape
    )
    rank = len(extents)
    before, after = window.padding[:rank], window.padding[rank:]
    outputs = window.output_extents(extents)
    x = te.placeholder((batch, channels, *extents), "float32", "x")

    def padded_last(b, *rest):
        *position, channel = rest
        source = [at - pad for at, pad in zip(position, before, strict=True)]
        value = x(b, channel, *source)
        if not any(window.padding):
            return value
        inside = tir.all(
            *(tir.all(at >= 0, at < extent) for at, extent in zip(source, extents, strict=True))
        )
        return tir.if_then_else(inside, value, tir.const(0, "float32"))

    wide = [lo + extent + hi for lo, extent, hi in zip(before, extents, after, strict=True)]
    moved = te.compute((batch, *wide, channels), padded_last, name="channels_last")

    def element(b, *rest):
        position, taps, channel = rest[:rank], rest[rank : 2 * rank], rest[2 * rank]
        source = [
            at * step + tap * space
            for at, step, tap, space in zip(
                position, window.strides, taps, window.dilation, strict=True
            )
        ]
        return moved(b, *source, channel)

    columns = te.compute((batch, *outputs, *window.kernel, channels), element, name="columns")
    sch = s_tir.Schedule(te.create_prim_func([x, columns]))
    for name in ("channels_last", "columns"):
        b, first, *_ = sch.get_loops(sch.get_sblock(name))
        sch.parallel(sch.fuse(b, first))
    return sch.mod["main"].without_attr("global_symbol").with_attr(SCHEDULED, True)


def columns_shape(shape, window: Window) -> list:
    """The shape of ``columns`` for that of ``x``."""
    batch, channels, *extents = shape
    outputs = [int(extent) for extent in window.output_extents(list(extents))]
    return [batch, *outputs, *window.kernel, int(channels)]
