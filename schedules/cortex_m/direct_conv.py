"""Convolutions of any alignment by multiply-adds: depthwise, of few channels, of few filters.

One channel at a time is copied, zeros around it, so that no window is a special case. A filter's
signs over the channel stay in registers while it goes over all positions. A sign is 0 outside the
piece of the filter whose dot products are being added up.
"""

from __future__ import annotations

import numpy as np
from tvm import tirx as tir
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tbn_tvm.schedules.cortex_m.lookup_conv import Plan
from tbn_tvm.schedules.cortex_m.pieces import bit_at, tile_words, words_size
from tbn_tvm.schedules.kernel import Config, Kernel
from tbn_tvm.schedules.reference import SCHEDULED
from tbn_tvm.schedules.rules import Workload

HELD_TAPS = 16
"""Signs that are kept in registers; larger windows take several passes."""


class DirectConv(Kernel):
    """Convolution of one image, float32 or int8, any groups, any segments."""

    name = "direct_conv"

    def layout(
        self, tile: np.ndarray, workload: Workload, configs: tuple[Config, ...]
    ) -> np.ndarray:
        return tile_words(tile)

    def prim_func(self, workload: Workload, configs: tuple[Config, ...]) -> tir.PrimFunc:
        product, plan = workload.product, Plan(workload)
        n, q = product.geometry.n, product.geometry.q
        groups, filters, segments = product.groups, product.unique_rows, product.segments
        channels, taps = workload.channels, workload.taps
        is_float = workload.dtype == "float32"
        sum_dtype, held_dtype = ("float32", "float32") if is_float else ("int32", "int16")
        (height, width), (out_h, out_w) = plan.inputs, plan.outputs
        rows = (out_h - 1) * plan.strides[0] + plan.reach[0]
        columns = plan.width
        top, left = plan.before
        inner_h, inner_w = (
            max(min(extent, size - before), 0)
            for extent, size, before in zip(
                (height, width), (rows, columns), plan.before, strict=True
            )
        )
        with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
            x = T.arg("x", T.Buffer((1, groups * channels, *workload.extents), workload.dtype))
            words = T.arg("words", T.Buffer((words_size(product),), "uint32"))
            shape = (1, groups, filters, segments, *workload.out_extents)
            dots = T.arg("dots", T.Buffer(shape, sum_dtype))
            image = T.decl_buffer((groups * channels, height, width), workload.dtype, data=x.data)
            shape = (groups, filters, segments, out_h, out_w)
            result = T.decl_buffer(shape, sum_dtype, data=dots.data)
            plane = T.alloc_buffer((rows, columns), held_dtype)

            def copy(channel):
                with T.serial(0, inner_h) as row, T.serial(0, inner_w) as column:
                    value = image[channel, row, column]
                    if not is_float:
                        value = (value.astype("int32") - workload.zero_point).astype("int16")
                    T.buffer_store(plane, value, [top + row, left + column])

            def place(tap):
                """Offset of a tap in the copied channel."""
                row, column = divmod(tap, plan.kernel[1])
                return row * plan.dilation[0], column * plan.dilation[1]

            def add_taps(group, filter_, segment, piece, first, these):
                signs = T.alloc_buffer((len(these),), sum_dtype)
                for number, tap in enumerate(these):
                    one = tir.const(1, sum_dtype)
                    sign = tir.Select(bit_at(words, (first + tap) % q), one, -one)
                    if piece is not None:
                        inside = (first + tap) // q == piece
                        sign = tir.Select(inside, sign, tir.const(0, sum_dtype))
                    T.buffer_store(signs, sign, [number])
                with T.serial(0, out_h) as row, T.serial(0, out_w) as column:
                    total = T.alloc_buffer((1,), sum_dtype)
                    at = [group, filter_, segment, row, column]
                    T.buffer_store(total, result[tuple(at)], [0])
                    for number, tap in enumerate(these):
                        down, right = place(tap)
                        value = plane[
                            row * plan.strides[0] + down, column * plan.strides[1] + right
                        ].astype(sum_dtype)
                        T.buffer_store(total, total[0] + value * signs[number], [0])
                    T.buffer_store(result, total[0], at)

            def add_channel(group, filter_, channel):
                row = group * product.group_rows + filter_
                first = row * n % q + channel * taps
                chunks = [range(i, min(i + HELD_TAPS, taps)) for i in range(0, taps, HELD_TAPS)]
                for these in chunks:
                    if segments == 1:
                        add_taps(group, filter_, 0, None, first, these)
                        continue
                    lowest = (first + these[0]) // q
                    highest = (first + these[-1]) // q
                    with T.serial(0, highest - lowest + 1) as i:
                        add_taps(group, filter_, lowest + i, lowest + i, first, these)

            def clear(buffer, extents, dtype):
                flat = T.decl_buffer((int(np.prod(extents)),), dtype, data=buffer.data)
                with T.serial(0, int(np.prod(extents))) as i:
                    T.buffer_store(flat, tir.const(0, dtype), [i])

            clear(dots, shape, sum_dtype)
            if (inner_h, inner_w) != (rows, columns):
                clear(plane, (rows, columns), held_dtype)
            with T.serial(0, groups) as group, T.serial(0, channels) as channel:
                copy(group * channels + channel)
                with T.serial(0, filters) as filter_:
                    add_channel(group, filter_, channel)
        return builder.get().with_attrs({"tirx.noalias": True, SCHEDULED: True})
