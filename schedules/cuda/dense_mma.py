"""Dense products on tensor cores: unique rows decoded from bits in registers, activations beside.

Rows are the M side of ``m16n8k16`` and samples the N side. A warp never stores a decoded weight:
each lane's word of bits becomes its operand registers in two instructions a register. Sums are
float32. Both regimes, few samples and many, read the same layout
(:mod:`tbn_tvm.schedules.cuda.fragments`), so that a function for any batch holds the tile once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx as tir
from tvm.script.ir_builder import tirx as T

from tbn_tvm.schedules.cuda import fragments
from tbn_tvm.schedules.cuda.build import barrier, ceil_div, flat_view, grid, store, when
from tbn_tvm.schedules.cuda.epilogue import copy_floats, store_copies, vector_width
from tbn_tvm.schedules.cuda.fragments import TILE_COLUMNS, TILE_ROWS
from tbn_tvm.schedules.cuda.intrinsics import (
    cp_async16,
    cp_async_commit,
    cp_async_wait,
    decoded,
    load32,
    load128,
    mma,
    store16,
    sync_warp,
)
from tbn_tvm.schedules.fused import FusedKernel, Operands
from tbn_tvm.schedules.kernel import Config
from tbn_tvm.schedules.layouts import sign_rows
from tbn_tvm.schedules.rules import Workload

FEW_SAMPLES = 8
"""Up to so many samples fill one N side: more rows at once would help nothing."""

SHARED_BYTES = 227 * 1024
"""Shared memory a block may have on sm_90; sm_80 has 163 KiB."""

FEW_SHARED_BYTES = 64 * 1024
"""Of the rings together by default: two blocks a processor, with room for what they add up."""

LINE_WORDS = 32
"""Words of 64 columns of a sample's activations, and of a tile's bits: 128 bytes."""

_PAD = 4
"""Floats that keep a column of the epilogue's matrix off the banks of its neighbour."""


class DenseMma(FusedKernel):
    """Tensor-core product over unique rows for float16 and bfloat16, any batch.

    Notes
    -----
    Few samples (at most 8): ``tiles`` of 16 rows a block, ``warps`` that each take every
    ``warps``-th 64 columns and whose sums are added in order; ``stages`` steps of ``ahead`` times
    64 columns in flight.

    Many: ``rows`` x ``samples`` a block, ``warps_m`` x ``warps_n`` warps, ``stages`` of
    activations in flight.
    """

    name = "dense_mma"
    version = 1
    order = fragments.NEIGHBOURS

    def regimes(self, workload: Workload) -> tuple[Workload, ...]:
        if workload.batch is not None:
            return (workload,)
        return workload.at_batch(1), workload.at_batch(64), workload.at_batch(2048)

    def space(self, workload: Workload) -> dict[str, tuple[int, ...]]:
        if workload.batch <= FEW_SAMPLES:
            return {
                "tiles": (1, 2, 4),
                "warps": (8, 4, 16, 32),
                "ahead": (2, 1, 4),
                "stages": (3, 2, 4),
            }
        return {
            "rows": (128, 64, 32, 16),
            "samples": (128, 64, 32, 256),
            "warps_m": (2, 1, 4),
            "warps_n": (2, 1, 4),
            "stages": (4, 2, 3),
        }

    def default(self, workload: Workload) -> dict[str, int]:
        rows, columns = workload.product.unique_rows, workload.product.geometry.n
        if workload.batch <= FEW_SAMPLES:
            chunks = -(-columns // TILE_COLUMNS)
            # Blocks for every processor first; then as many rows a block as share activations.
            tiles = next(t for t in (4, 2, 1) if rows // (TILE_ROWS * t) >= 128 or t == 1)
            warps = next(w for w in (16, 8, 4) if chunks >= 2 * w or w == 4)
            # Latency is what such a product waits for: bytes in flight as shared memory allows.
            for ahead, stages in ((4, 3), (2, 3), (1, 3), (1, 2)):
                config = {"tiles": tiles, "warps": warps, "ahead": ahead, "stages": stages}
                if FewPlan(workload, config).shared_words * 4 <= FEW_SHARED_BYTES:
                    break
            return config
        block_rows = next((b for b in (128, 64, 32) if rows >= b), 16)
        warps_m = max(1, block_rows // 64)
        # Smaller blocks where large ones would leave processors idle.
        samples = next(
            (
                s
                for s in (128, 64)
                if -(-rows // block_rows) * -(-workload.batch // s) >= 128 and s <= workload.batch
            ),
            32,
        )
        return {
            "rows": block_rows,
            "samples": samples,
            "warps_m": warps_m,
            "warps_n": max(1, min(4 // warps_m, samples // 32)),
            "stages": 4,
        }

    def valid(self, workload: Workload, config: Config) -> bool:
        if workload.batch <= FEW_SAMPLES:
            words = FewPlan(workload, config).shared_words
            return config["warps"] * config["tiles"] <= 64 and words * 4 <= 2 * FEW_SHARED_BYTES
        rows, samples = config["rows"], config["samples"]
        tile_m, tile_n = rows // config["warps_m"], samples // config["warps_n"]
        shared = max(config["stages"] * samples * TILE_COLUMNS * 2, samples * (rows + _PAD) * 4)
        return (
            tile_m >= TILE_ROWS
            and tile_n >= 8
            # Sums, activations and words of a lane have to stay in registers.
            and tile_m * tile_n // 32 <= 128
            and config["warps_m"] * config["warps_n"] <= 16
            and shared <= (SHARED_BYTES if "sm_90" in workload.features else 163 * 1024)
        )

    def words_shape(self, workload: Workload, configs) -> tuple[tuple[int, ...], str]:
        product = workload.product
        tiles = fragments.tile_counts(product.unique_rows, product.geometry.n)
        return (*tiles, fragments.LANES), "uint32"

    def layout(
        self, tile: np.ndarray, workload: Workload, configs: tuple[Config, ...]
    ) -> np.ndarray:
        (signs,) = sign_rows(tile, workload.product)
        return fragments.fragment_words(signs, self.order)

    def emit(self, io: Operands, workload: Workload, configs: tuple[Config, ...]) -> None:
        if workload.batch is not None:
            if workload.batch <= FEW_SAMPLES:
                _emit_few(io, workload, configs[0], self.order)
            else:
                self.emit_many(io, workload, configs[0])
            return
        few, some, many = configs
        samples = io.samples
        with T.If(samples <= FEW_SAMPLES):
            with T.Then():
                _emit_few(io, workload, few, self.order)
            with T.Else(), T.If(samples <= 256):
                with T.Then():
                    self.emit_many(io, workload, some)
                with T.Else():
                    self.emit_many(io, workload, many)

    def emit_many(self, io: Operands, workload: Workload, config: Config) -> None:
        """Write the code for many samples."""
        _emit_many(io, workload, config)


def samples32(io: Operands):
    """The number of input vectors: a number, or 32 bits of a symbolic one."""
    samples = io.samples
    return int(samples) if isinstance(samples, (int, tir.IntImm)) else T.cast(samples, "int32")


def _aligned(workload: Workload) -> bool:
    """Whether every row of activations starts at a multiple of 16 bytes."""
    return workload.product.geometry.n % 8 == 0


def _wide(index):
    """An index of rows in 64 bits: activations may be larger than 2 GiB."""
    return T.cast(index, "int64")


@dataclass(frozen=True)
class FewPlan:
    """How a product with few samples falls into warps, steps and shared memory.

    A *step* of a warp is ``ahead`` tiles of 64 columns; every warp has a ring of ``stages`` steps
    of its own, so that warps never wait for one another before the end.
    """

    workload: Workload
    config: Config

    @property
    def chunks(self) -> int:
        """Tiles of 64 columns."""
        return fragments.tile_counts(1, self.workload.product.geometry.n)[1]

    @property
    def row_tiles(self) -> int:
        """Tiles of 16 rows."""
        return -(-self.workload.product.unique_rows // TILE_ROWS)

    @property
    def samples(self) -> int:
        """Input vectors that there is room for."""
        return FEW_SAMPLES if self.workload.batch is None else self.workload.batch

    @property
    def tiles(self) -> int:
        """Tiles of 16 rows of a block."""
        return min(self.config["tiles"], self.row_tiles)

    @property
    def warps(self) -> int:
        """Warps, of which none is without columns."""
        return min(self.config["warps"], self.chunks)

    @property
    def ahead(self) -> int:
        """Tiles of 64 columns of a step."""
        return min(self.config["ahead"], -(-self.chunks // self.warps))

    @property
    def steps(self) -> int:
        """Steps of a warp."""
        return -(-self.chunks // (self.warps * self.ahead))

    @property
    def stages(self) -> int:
        """Steps in a ring."""
        return min(self.config["stages"], self.steps + 1)

    @property
    def chunk_words(self) -> int:
        """Words of shared memory of a tile of columns: activations, then bits of each row tile."""
        return (self.samples + self.tiles) * LINE_WORDS

    @property
    def shared_words(self) -> int:
        """Words of shared memory of all rings."""
        return self.warps * self.stages * self.ahead * self.chunk_words


def _emit_few(io: Operands, workload: Workload, config: Config, order: str) -> None:
    """At most 8 samples: warps share a block's columns and add their sums up in order."""
    plan = FewPlan(workload, config)
    product, dtype = workload.product, workload.dtype
    n, rows = product.geometry.n, product.unique_rows
    tiles, warps, ahead, stages = plan.tiles, plan.warps, plan.ahead, plan.stages
    samples = samples32(io)
    block_rows = tiles * TILE_ROWS
    x = flat_view(io.x, (io.samples, n))
    with grid(32 * warps, x=-(-plan.row_tiles // tiles)) as (block, thread):
        # float32 as in every kernel: nvcc wants one type of all dynamic memory in a source.
        pool = T.alloc_buffer((plan.shared_words,), "float32", scope="shared.dyn")
        near = T.decl_buffer((plan.shared_words * 2,), dtype, data=pool.data, scope="shared.dyn")
        sums = T.alloc_buffer((warps * tiles * 32 * 4,), "float32", scope="shared")
        dots = T.alloc_buffer((FEW_SAMPLES, block_rows), "float32", scope="shared")
        acc = T.alloc_buffer((tiles * 4,), "float32", scope="local")
        word = T.alloc_buffer((tiles,), "uint32", scope="local")
        act = T.alloc_buffer((8,), "uint32", scope="local")
        warp, lane = thread // 32, thread % 32
        group, quarter = lane // 4, lane % 4

        def held(step, u):
            """Where a warp keeps a tile of columns."""
            stage = warp * stages + step % stages
            return (stage * ahead + u) * plan.chunk_words

        def chunk_of(step, u):
            return (step * ahead + u) * warps + warp

        def bring(step):
            """Start copying a step."""
            for u in range(ahead):
                chunk, to = chunk_of(step, u), held(step, u)
                for first in range(0, plan.samples * 8, 32):
                    piece = first + lane
                    sample, eighth = piece // 8, piece % 8
                    column = chunk * TILE_COLUMNS + eighth * 8
                    at = to + sample * LINE_WORDS + T.bitwise_xor(eighth, sample % 2) * 4
                    needed = tir.all(piece < plan.samples * 8, sample < samples)
                    with when(tir.all(chunk < plan.chunks, needed)):
                        _copy16(workload, x, sample, column, pool, near, at)
                for first in range(0, tiles * 8, 32):
                    piece = first + lane
                    tile, eighth = piece // 8, piece % 8
                    row_tile = tir.min(block * tiles + tile, plan.row_tiles - 1)
                    at = to + (plan.samples + tile) * LINE_WORDS + eighth * 4
                    with when(tir.all(chunk < plan.chunks, piece < tiles * 8)):
                        source = io.words[row_tile, chunk, eighth * 4]
                        cp_async16(T.address_of(pool[at]), T.address_of(source), 16)
            cp_async_commit()

        def multiply(step, u):
            base = held(step, u)
            # Lanes of samples that there are not repeat the last: nobody reads what they make.
            sample = tir.min(group, plan.samples - 1)
            line = base + sample * LINE_WORDS
            if order == fragments.NEIGHBOURS:
                for half in range(2):
                    at = line + T.bitwise_xor(quarter * 2 + half, sample % 2) * 4
                    load128(T.address_of(act[4 * half]), T.address_of(pool[at]))
            else:
                for i in range(8):
                    at = line + T.bitwise_xor(i, sample % 2) * 4 + quarter
                    store(act, load32(T.address_of(pool[at])), i)
            for i in range(tiles):
                at = base + (plan.samples + i) * LINE_WORDS + lane
                store(word, load32(T.address_of(pool[at])), i)
            for s in range(4):
                for i in range(tiles):
                    a = [decoded(word[i], 4 * s + j, dtype) for j in range(4)]
                    mma(dtype, T.address_of(acc[i * 4]), a, [act[2 * s], act[2 * s + 1]])

        for i in range(tiles * 4):
            store(acc, T.float32(0), i)
        for step in range(stages - 1):
            bring(step)
        with T.serial(0, plan.steps) as step:
            cp_async_wait(stages - 2)
            sync_warp()
            bring(step + (stages - 1))
            for u in range(ahead):
                with when(chunk_of(step, u) < plan.chunks):
                    multiply(step, u)
        cp_async_wait(0)
        for i in range(tiles * 4):
            at = ((warp * tiles + i // 4) * 32 + lane) * 4 + i % 4
            store(sums, acc[i], at)
        barrier()
        outputs = FEW_SAMPLES * block_rows
        with T.serial(0, -(-outputs // (32 * warps))) as turn:
            index = turn * 32 * warps + thread
            with when(index < outputs):
                row, column = index % block_rows, index // block_rows
                place = ((row // 16) * 32 + (row % 8) * 4 + column // 2) * 4
                place = place + (row % 16 // 8) * 2 + column % 2
                total = sums[place]
                for w in range(1, warps):
                    total = total + sums[w * tiles * 128 + place]
                store(dots, total, column, row)
        barrier()
        work = samples * block_rows
        with T.serial(0, ceil_div(work, 32 * warps)) as turn:
            index = turn * 32 * warps + thread
            row, column = index % block_rows, index // block_rows
            unique = block * block_rows + row
            with when(tir.all(column < samples, unique < rows)):
                store_copies(io, workload, column, unique, lambda _lane: dots[column, row])


def _copy16(workload, x, sample, column, pool, near, at) -> None:
    """Bring eight activations to a place in shared memory, zeros past the end of the row."""
    n = workload.product.geometry.n
    if _aligned(workload):
        inside = column < n
        source = x[_wide(sample), tir.Select(inside, column, 0)]
        size = tir.Select(inside, 16, 0)
        cp_async16(T.address_of(pool[at]), T.address_of(source), size)
        return
    for e in range(8):
        value = tir.if_then_else(
            column + e < n, x[_wide(sample), column + e], tir.const(0, workload.dtype)
        )
        store16(T.address_of(near[at * 2 + e]), value, workload.dtype)


def _emit_many(io: Operands, workload: Workload, config: Config) -> None:
    """Many samples: blocks of rows and samples, activations through a pipeline of copies."""
    product, dtype = workload.product, workload.dtype
    n, rows = product.geometry.n, product.unique_rows
    row_tiles, chunks = fragments.tile_counts(rows, n)
    block_m, block_n, stages = config["rows"], config["samples"], config["stages"]
    warps_m, warps_n = config["warps_m"], config["warps_n"]
    threads = 32 * warps_m * warps_n
    tiles_m, tiles_n = block_m // warps_m // TILE_ROWS, block_n // warps_n // 8
    samples = samples32(io)
    x = flat_view(io.x, (io.samples, n))
    stage_size = block_n * TILE_COLUMNS
    pool_size = max(stages * stage_size * 2, block_n * (block_m + _PAD) * 4)
    with grid(threads, x=-(-rows // block_m), y=ceil_div(samples, block_n)) as (bm, bn, thread):
        pool = T.alloc_buffer((pool_size // 4,), "float32", scope="shared.dyn")
        stage = T.decl_buffer((stages * stage_size,), dtype, data=pool.data, scope="shared.dyn")
        dots = T.decl_buffer(
            (block_n, block_m + _PAD), "float32", data=pool.data, scope="shared.dyn"
        )
        acc = T.alloc_buffer((tiles_m * tiles_n * 4,), "float32", scope="local")
        word = T.alloc_buffer((tiles_m,), "uint32", scope="local")
        coming = T.alloc_buffer((tiles_m,), "uint32", scope="local")
        a = T.alloc_buffer((4,), "uint32", scope="local")
        act = T.alloc_buffer((tiles_n * 4,), "uint32", scope="local")
        warp, lane = thread // 32, thread % 32
        group, quarter = lane // 4, lane % 4
        first_tile = bm * (block_m // TILE_ROWS) + warp % warps_m * tiles_m
        first_sample = warp // warps_m * (tiles_n * 8)

        def load_words(target, chunk):
            for i in range(tiles_m):
                row_tile = tir.min(first_tile + i, row_tiles - 1)
                store(target, io.words[row_tile, tir.min(chunk, chunks - 1), lane], i)

        def place(row, sixteenth):
            # Neighbouring samples swap pairs of 16 bytes, so that eight lanes meet all banks.
            return row * TILE_COLUMNS + T.bitwise_xor(sixteenth, row % 2) * 8

        def start_copy(chunk):
            for i in range(-(-block_n * 8 // threads)):
                index = thread + i * threads
                row, sixteenth = index // 8, index % 8
                sample, column = bn * block_n + row, chunk * TILE_COLUMNS + sixteenth * 8
                to = chunk % stages * stage_size + place(row, sixteenth)
                needed = block_n * 8 % threads != 0 and (i + 1) * threads > block_n * 8
                if _aligned(workload):
                    inside = tir.all(sample < samples, column < n)
                    source = x[_wide(tir.Select(inside, sample, 0)), tir.Select(inside, column, 0)]

                    def copy(to=to, source=source, inside=inside):
                        size = tir.Select(inside, 16, 0)
                        cp_async16(T.address_of(stage[to]), T.address_of(source), size)
                else:

                    def copy(to=to, sample=sample, column=column):
                        for e in range(8):
                            inside = tir.all(sample < samples, column + e < n)
                            value = tir.if_then_else(
                                inside, x[_wide(sample), column + e], tir.const(0, dtype)
                            )
                            store(stage, value, to + e)

                if needed:
                    with when(index < block_n * 8):
                        copy()
                else:
                    copy()

        for i in range(tiles_m * tiles_n * 4):
            store(acc, T.float32(0), i)
        for i in range(stages - 1):
            if i < chunks:
                start_copy(i)
            cp_async_commit()
        load_words(word, 0)
        with T.serial(0, chunks) as chunk:
            cp_async_wait(stages - 2)
            barrier()
            with when(chunk + (stages - 1) < chunks):
                start_copy(chunk + (stages - 1))
            cp_async_commit()
            load_words(coming, chunk + 1)
            base = chunk % stages * stage_size
            for half in range(2):
                for i in range(tiles_n):
                    at = base + place(first_sample + i * 8 + group, quarter * 2 + half)
                    load128(T.address_of(act[i * 4]), T.address_of(stage[at]))
                for s in range(2):
                    for i in range(tiles_m):
                        for j in range(4):
                            store(a, decoded(word[i], 8 * half + 4 * s + j, dtype), j)
                        for k in range(tiles_n):
                            b = [act[k * 4 + 2 * s], act[k * 4 + 2 * s + 1]]
                            address = T.address_of(acc[(i * tiles_n + k) * 4])
                            mma(dtype, address, [a[j] for j in range(4)], b)
            for i in range(tiles_m):
                store(word, coming[i], i)
        cp_async_wait(0)
        barrier()
        for i in range(tiles_m):
            for k in range(tiles_n):
                for c in range(4):
                    row = (warp % warps_m * tiles_m + i) * TILE_ROWS + group + 8 * (c // 2)
                    column = first_sample + k * 8 + quarter * 2 + c % 2
                    store(dots, acc[(i * tiles_n + k) * 4 + c], column, row)
        barrier()
        vector = vector_width(workload)
        vectors = block_m // vector
        with T.serial(0, -(-block_n * vectors // threads)) as turn:
            index = turn * threads + thread
            column, row = index // vectors, index % vectors * vector
            sample, unique = bn * block_n + column, bm * block_m + row
            inside = tir.all(sample < samples, unique < rows)
            if block_n * vectors % threads:
                inside = tir.all(column < block_n, inside)
            held = T.alloc_buffer((vector,), "float32", scope="local")
            with when(inside):
                copy_floats(held, 0, dots, (column, row), vector)
                store_copies(io, workload, sample, unique, lambda lane: held[lane], vector)
