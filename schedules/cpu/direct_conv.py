"""Convolutions by multiply-adds along output positions, for any SIMD CPU, groups and segments.

The unique filters are decoded once a call into a panel of plus and minus one, cut at the ends of
the tile into a filter for each piece of constant alpha (zero elsewhere). Outputs of a tile are
walked as one line of the copied input's own width, in vectors: every tap then reads a contiguous
stretch, whatever the image's width, and what falls between two output rows is not kept.
"""

from __future__ import annotations

import numpy as np
from tvm import tirx as tir
from tvm.script.ir_builder import tirx as T

from tbn_tvm.schedules.cpu.conv import ConvKernel, Task, Tiles
from tbn_tvm.schedules.cpu.lookup import clear
from tbn_tvm.schedules.kernel import Config
from tbn_tvm.schedules.rules import Workload

SIGN, ONE = 0x80000000, 0x3F800000
"""Bits of a float32: the sign, and one."""

PLANES, LANES = 32, 16
CHUNK = PLANES * LANES
"""Weights that a vector of words holds: weight ``b * LANES + l`` is bit ``b`` of lane ``l``."""

UNROLLED_TAPS = 25
"""Windows of up to so many taps are written out."""

_SHAPES = {  # lanes, filters and vectors of positions by feature: as many sums as registers hold
    "avx512f": (16, 4, 4),
    "avx2": (8, 4, 2),
    "": (4, 4, 2),
}


def pack(bits: np.ndarray) -> np.ndarray:
    """Booleans in order as words of :data:`CHUNK`; those past the end are clear."""
    chunks = -(-bits.size // CHUNK)
    padded = np.zeros(chunks * CHUNK, dtype=bool)
    padded[: bits.size] = bits.reshape(-1)
    planes = np.ascontiguousarray(padded.reshape(chunks, PLANES, LANES).transpose(0, 2, 1))
    packed = np.packbits(planes, axis=2, bitorder="little").view("<u4")
    return packed.astype(np.uint32).reshape(-1)


def pieces(workload: Workload) -> np.ndarray:
    """Which elements of each unique filter each segment has.

    Returns
    -------
    numpy.ndarray
        bool, shape ``(groups, unique_rows, segments, n)``.
    """
    product = workload.product
    n, q = product.geometry.n, product.geometry.q
    shape = (product.groups, product.unique_rows, product.segments, n)
    if product.segments == 1:
        return np.ones(shape, dtype=bool)
    rows = np.arange(product.groups)[:, None] * product.group_rows + np.arange(product.unique_rows)
    number = (rows[..., None] * n % q + np.arange(n)) // q
    return number[:, :, None, :] == np.arange(product.segments)[:, None]


class DirectConv(ConvKernel):
    """Multiply-adds of vectors of neighbouring outputs with one weight each.

    Notes
    -----
    Parameters: ``filters`` filters and ``vectors`` vectors of ``lanes`` positions are computed
    together in registers, in tiles of ``rows`` output rows.
    """

    name = "direct_conv"

    def space(self, workload: Workload) -> dict[str, tuple[int, ...]]:
        height = self._height(workload)
        return {
            "filters": (1, 2, 4, 6),
            "lanes": (4, 8, 16),
            "vectors": (1, 2, 4, 6, 8),
            "rows": tuple(sorted({1, 4, 8, 16, 32, min(height, 64), min(height, 8)})),
        }

    def default(self, workload: Workload) -> dict[str, int]:
        found = (f for f in ("avx512f", "avx2") if f in workload.features)
        lanes, filters, vectors = _SHAPES[next(found, "")]
        while filters > self.filters(workload):
            filters, vectors = filters // 2, vectors * 2
        height = self._height(workload)
        return {
            "filters": filters,
            "lanes": lanes,
            "vectors": min(vectors, 8),
            "rows": min(height, 8 if workload.channels > 4 else 64),
        }

    def valid(self, workload: Workload, config: Config) -> bool:
        height = self._height(workload)
        return (
            config["filters"] <= self.filters(workload)
            and 4 <= config["filters"] * config["vectors"] <= 24
            and config["rows"] <= height
        )

    @staticmethod
    def _height(workload: Workload) -> int:
        """Rows of an image; a signal has one."""
        return workload.out_extents[0] if len(workload.extents) == 2 else 1

    def filters(self, workload: Workload) -> int:
        """Filters of a group: a unique row's segments are one each."""
        return workload.product.unique_rows * workload.product.segments

    def row_words(self, signs: np.ndarray, workload: Workload, config: Config) -> np.ndarray:
        groups, _, n = signs.shape
        size, filters = config["filters"], self.filters(workload)
        blocks = -(-filters // size)

        def panel(values: np.ndarray) -> np.ndarray:
            """``(groups, filters, n)`` in the panel's order: blocks, elements, filters in one."""
            padded = np.zeros((groups, blocks * size, n), dtype=bool)
            padded[:, :filters] = values.reshape(groups, filters, n)
            return padded.reshape(groups, blocks, size, n).swapaxes(2, 3)

        present = pieces(workload)
        negative = pack(panel(~signs[:, :, None, :] & present))
        if workload.product.segments == 1:
            return negative
        return np.concatenate([negative, pack(panel(present))])

    def before(self, words: tir.Buffer, workload: Workload, config: Config, loop) -> tir.Buffer:
        """Decode the filters into a panel."""
        planes = 1 if workload.product.segments == 1 else 2
        size = int(words.shape[0]) // planes
        panel = T.alloc_buffer((size // LANES * CHUNK,), "float32")

        def constant(value: int):
            return T.broadcast(T.uint32(value), LANES)

        with loop(0, size // LANES) as chunk:
            for plane in range(PLANES):
                shift = constant(PLANES - 1 - plane)
                negative = tir.shift_left(words[T.ramp(chunk * LANES, 1, LANES)], shift)
                bits = tir.bitwise_or(tir.bitwise_and(negative, constant(SIGN)), constant(ONE))
                value = T.reinterpret(f"float32x{LANES}", bits)
                if planes == 2:
                    present = words[T.ramp(size + chunk * LANES, 1, LANES)]
                    present = tir.bitwise_and(tir.shift_left(present, shift), constant(SIGN))
                    zero = T.broadcast(T.float32(0), LANES)
                    value = tir.Select(present != constant(0), value, zero)
                at = T.ramp(chunk * CHUNK + plane * LANES, 1, LANES)
                T.buffer_store(panel, value, [at])
        return panel

    def compute(self, task: Task, workload: Workload, config: Config, extra) -> None:
        tiles, channels = task.tiles, workload.channels
        down, across = tiles.plane
        lanes = config["lanes"]
        line = (tiles.rows - 1) * across + tiles.columns  # outputs with what lies between rows
        vectors = min(config["vectors"], -(-line // lanes))
        step = vectors * lanes
        blocks = -(-line // step)
        # The last vectors reach past the plane, at most by their own length.
        plane = down * across + step
        planes = T.alloc_buffer((channels * len(tiles.phases), plane), "float32")
        self._copy(task, workload, planes)
        size, filters = config["filters"], self.filters(workload)
        outputs = T.alloc_buffer((size, blocks * step), "float32")
        with T.serial(0, -(-filters // size)) as block:
            base = T.bind((task.group * -(-filters // size) + block) * workload.product.geometry.n)
            with T.serial(0, blocks) as number:
                self._products(
                    task, workload, planes, extra, outputs, number * step, base, config, vectors
                )
            self._keep(task, workload, outputs, block, size, across)

    def _copy(self, task: Task, workload: Workload, planes: tir.Buffer) -> None:
        """Copy a tile's input, by channel and phase."""
        tiles = task.tiles
        (down, across), phases = tiles.plane, tiles.phases
        for number, (py, px) in enumerate(phases):
            low, high = tiles.span(px, task.column)
            with T.serial(0, workload.channels) as c, T.serial(0, down) as i:
                y = T.bind(tiles.source(0, py, task.row, i))
                target = T.bind(c * len(phases) + number)

                def zero(start, stop, target=target, i=i) -> None:
                    with T.serial(0, stop - start) as j:
                        T.buffer_store(planes, T.float32(0), [target, i * across + start + j])

                with T.If(tiles.inside(0, y)):
                    with T.Then():
                        zero(0, low)
                        with T.serial(0, high - low) as j:
                            x = tiles.source(1, px, task.column, low + j)
                            value = task.load(task.group * workload.channels + c, y, x)
                            T.buffer_store(planes, value, [target, i * across + low + j])
                        zero(high, across)
                    with T.Else():
                        zero(0, across)

    def _products(
        self, task: Task, workload: Workload, planes, panel, outputs, at, base, config, vectors
    ) -> None:
        """Compute a block of filters at some vectors of positions from ``at`` on."""
        tiles, lanes, size = task.tiles, config["lanes"], config["filters"]
        across, phases, ramp = tiles.plane[1], len(tiles.phases), T.ramp(0, 1, lanes)
        taps = tiles.taps
        sums = T.alloc_buffer((size * vectors, lanes), "float32")
        clear(sums)

        def add(element, plane, offset) -> None:
            values = [
                planes[plane, T.ramp(at + offset + v * lanes, 1, lanes)] for v in range(vectors)
            ]
            for f in range(size):
                weight = T.broadcast(panel[(base + element) * size + f], lanes)
                for v in range(vectors):
                    line = f * vectors + v
                    T.buffer_store(sums, sums[line, ramp] + weight * values[v], [line, ramp])

        with T.serial(0, workload.channels) as c:
            if len(taps) <= UNROLLED_TAPS:
                for number, tap in enumerate(taps):
                    offset = tap.row * across + tap.column
                    add(c * len(taps) + number, c * phases + tap.phase, offset)
            else:
                height, width = tiles.window.kernel
                with T.serial(0, height) as ky, T.serial(0, width) as kx:
                    phase, offset = self._tap(tiles, ky, kx)
                    add(c * len(taps) + ky * width + kx, c * phases + phase, offset)
        for f in range(size):
            for v in range(vectors):
                T.buffer_store(
                    outputs, sums[f * vectors + v, ramp], [f, T.ramp(at + v * lanes, 1, lanes)]
                )

    @staticmethod
    def _tap(tiles: Tiles, ky, kx):
        """Phase and offset of a tap whose coordinates are loop variables."""
        (sy, sx), (dy, dx) = tiles.window.strides, tiles.window.dilation
        rows, columns = tiles.remainders(0), tiles.remainders(1)
        phase = ky * dy % sy // rows.step * len(columns) + kx * dx % sx // columns.step
        return phase, ky * dy // sy * tiles.plane[1] + kx * dx // sx

    def _keep(self, task: Task, workload: Workload, outputs, block, size: int, across: int) -> None:
        """Store a block's dot products, without what lies between rows."""
        tiles, segments = task.tiles, workload.product.segments
        filters = self.filters(workload)
        with T.serial(0, size) as f:
            number = T.bind(block * size + f)

            def store() -> None:
                with T.serial(0, tiles.rows) as i, T.serial(0, tiles.columns) as j:
                    value = outputs[f, i * across + j]
                    task.store(number // segments, number % segments, i, j, value)

            if filters % size:
                with T.If(number < filters), T.Then():
                    store()
            else:
                store()
