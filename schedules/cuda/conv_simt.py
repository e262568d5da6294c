"""Convolutions on ordinary GPU cores: any dtype, groups, alignment and GPU, CUDA or OpenCL.

A thread is an output position and sums a few filters there. The signs of those filters are decoded
into shared memory, some channels at a time, once for all positions of a block; activations are
read where they lie, neighbours by neighbouring threads. Where alphas change inside a row, the
decoded weights carry them, and every output channel is a row of its own.
"""

from __future__ import annotations

import math

import numpy as np
from tvm import tirx as tir
from tvm.script.ir_builder import tirx as T

from tbn_tvm.schedules.cuda.build import barrier, ceil_div, flat_view, grid, store, when
from tbn_tvm.schedules.cuda.dense_segments import tile_words
from tbn_tvm.schedules.cuda.epilogue import each_copy, output
from tbn_tvm.schedules.fused import FusedKernel, Operands
from tbn_tvm.schedules.kernel import Config
from tbn_tvm.schedules.rules import Workload

UNROLLED_TAPS = 25
"""Up to so many taps are written out; more are a loop."""

_WORD = 32
_SHARED_FLOATS = 8192


class ConvSimt(FusedKernel):
    """Direct convolution with decoded filters in shared memory.

    Notes
    -----
    ``rows``: filters a thread sums; ``threads``: positions of a block; ``columns``: decoded
    weights of a filter at once, about.
    """

    name = "conv_simt"
    version = 1

    def regimes(self, workload: Workload) -> tuple[Workload, ...]:
        return (workload if workload.batch is not None else workload.at_batch(8),)

    def space(self, workload: Workload) -> dict[str, tuple[int, ...]]:
        return {"rows": (16, 8, 32, 4), "threads": (128, 64, 256), "columns": (128, 64, 256)}

    def valid(self, workload: Workload, config: Config) -> bool:
        channels = max(1, min(workload.channels, config["columns"] // workload.taps))
        return config["rows"] * channels * workload.taps <= _SHARED_FLOATS

    def default(self, workload: Workload) -> dict[str, int]:
        most = max(4, _SHARED_FLOATS // (2 * workload.taps))
        rows = _rows(workload)
        return {
            "rows": next((r for r in (16, 8) if rows >= r and r <= most), 4),
            "threads": 128,
            "columns": 128,
        }

    def words_shape(self, workload: Workload, configs) -> tuple[tuple[int, ...], str]:
        return (-(-workload.product.geometry.q // _WORD),), "uint32"

    def layout(
        self, tile: np.ndarray, workload: Workload, configs: tuple[Config, ...]
    ) -> np.ndarray:
        return tile_words(tile)

    def emit(self, io: Operands, workload: Workload, configs: tuple[Config, ...]) -> None:
        _emit(io, workload, configs[0])


def _shares_rows(workload: Workload) -> bool:
    """Whether equal rows are computed once: alpha has one value a row."""
    return workload.product.segments == 1


def _rows(workload: Workload) -> int:
    """Rows of a group that are computed."""
    product = workload.product
    return product.unique_rows if _shares_rows(workload) else product.group_rows


def _int32(extent):
    if isinstance(extent, (int, tir.IntImm)):
        return int(extent)
    return T.cast(extent, "int32")


def _emit(io: Operands, workload: Workload, config: Config) -> None:
    product, window = workload.product, workload.window
    n, q = product.geometry.n, product.geometry.q
    rank, taps, channels = len(window.kernel), workload.taps, workload.channels
    rows_of_group = _rows(workload)
    rows = min(config["rows"], rows_of_group)
    threads = config["threads"]
    near_channels = max(1, min(channels, config["columns"] // taps))
    near = near_channels * taps
    row_blocks = -(-rows_of_group // rows)
    batch, _, *extents = io.x.shape
    inputs = [_int32(extent) for extent in extents]
    outputs = [_int32(extent) for extent in io.y.shape[2:]]
    area = math.prod(outputs) if all(isinstance(o, int) for o in outputs) else None
    if area is None:
        area = outputs[0]
        for extent in outputs[1:]:
            area = area * extent
    images = _int32(batch)
    positions = images * area
    x = flat_view(io.x, (batch, product.groups * channels, *extents))
    with grid(threads, x=ceil_div(positions, threads), y=product.groups * row_blocks) as (
        block,
        strip,
        thread,
    ):
        weights = T.alloc_buffer((near * rows,), "float32", scope="shared")
        acc = T.alloc_buffer((rows,), "float32", scope="local")
        value = T.alloc_buffer((1,), "float32", scope="local")
        group, first_row = strip // row_blocks, strip % row_blocks * rows
        place = block * threads + thread
        image = T.cast(tir.min(place // area, images - 1), "int64")
        rest, position = place % area, []
        for extent in reversed(outputs):
            position.insert(0, rest % extent)
            rest = rest // extent
        for row in range(rows):
            store(acc, T.float32(0), row)

        def decode(part):
            """This thread's share of the weights of ``near_channels`` channels."""
            with T.serial(0, -(-near * rows // threads)) as turn:
                index = turn * threads + thread
                row, local = first_row + index % rows, index // rows
                column = part * near + local
                with when(tir.all(index < near * rows, row < rows_of_group, column < n)):
                    whole = group * product.group_rows + row
                    start = T.cast(T.cast(whole, "int64") * n % q, "int32")
                    bit = (start + column) % q
                    word = io.words[bit // _WORD] >> T.cast(bit % _WORD, "uint32")
                    weight = T.float32(1)
                    if not _shares_rows(workload):
                        segment = (start + column) // q
                        at = product.alpha_index(T.cast(whole, "int64"), segment)
                        weight = io.alpha[at].astype("float32")
                    clear = T.bitwise_and(word, T.uint32(1)) == T.uint32(0)
                    store(weights, tir.Select(clear, -weight, weight), index)

        def add(channel, local, tap, offsets):
            """Add a tap of a channel to every sum."""
            at = [
                p * step - before + offset
                for p, step, before, offset in zip(
                    position, window.strides, window.padding[:rank], offsets, strict=True
                )
            ]
            inside = [place < positions]
            if any(window.padding):
                for index, extent in zip(at, inputs, strict=True):
                    inside += [index >= 0, index < extent]
            activation = x[(image, group * channels + channel, *at)].astype("float32")
            store(value, tir.if_then_else(tir.all(*inside), activation, T.float32(0)), 0)
            for row in range(rows):
                weight = weights[(local * taps + tap) * rows + row]
                store(acc, acc[row] + weight * value[0], row)

        with T.serial(0, -(-channels // near_channels)) as part:
            barrier()
            decode(part)
            barrier()
            with T.serial(0, near_channels) as local:
                channel = part * near_channels + local
                with when(channel < channels):
                    if taps <= UNROLLED_TAPS:
                        for tap, taken in enumerate(np.ndindex(*window.kernel)):
                            offsets = [
                                t * space for t, space in zip(taken, window.dilation, strict=True)
                            ]
                            add(channel, local, tap, offsets)
                    else:
                        with T.serial(0, taps) as tap:
                            offsets, rest = [], tap
                            for size, space in zip(
                                reversed(window.kernel), reversed(window.dilation), strict=True
                            ):
                                offsets.insert(0, rest % size * space)
                                rest = rest // size
                            add(channel, local, tap, offsets)
        for row in range(rows):
            local = first_row + row
            with when(tir.all(place < positions, local < rows_of_group)):
                if _shares_rows(workload):
                    for copy in each_copy(product):
                        within = copy * product.unique_rows + local
                        out_row = group * product.group_rows + within
                        indices = [image, out_row, *position]
                        whole = product.group_rows % product.unique_rows == 0
                        with when(
                            tir.const(True, "bool") if whole else within < product.group_rows
                        ):
                            result = output(io, workload, acc[row], out_row, copy)
                            store(io.y, io.finish(result, indices), *indices)
                else:
                    out_row = group * product.group_rows + local
                    indices = [image, out_row, *position]
                    result = acc[row]
                    if io.bias is not None:
                        result = result + io.bias[out_row].astype("float32")
                    store(io.y, io.finish(result, indices), *indices)
