"""Convolutions on tensor cores: an implicit matrix product over unique filters.

A block computes some unique filters of a group at a rectangle of output positions of one image.
Of the input it holds, a few channels at a time, the patch that the rectangle's windows cover, with
channels last: each element is read from global memory once and serves every tap and every filter.
A lane's operand of 16 columns is 16 channels of one tap at one position, so that taps cost an
address each and nothing is ever copied into columns. Filters are decoded from bits in registers,
as in :mod:`tbn_tvm.schedules.cuda.dense_mma`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from tvm import tirx as tir
from tvm.script.ir_builder import tirx as T

from tbn_tvm.schedules.cuda import fragments
from tbn_tvm.schedules.cuda.build import barrier, flat_view, grid, store, when
from tbn_tvm.schedules.cuda.epilogue import copy_floats, each_copy, output
from tbn_tvm.schedules.cuda.fragments import TILE_ROWS
from tbn_tvm.schedules.cuda.intrinsics import decoded, load128, mma, store128
from tbn_tvm.schedules.fused import FusedKernel, Operands
from tbn_tvm.schedules.kernel import Config
from tbn_tvm.schedules.layouts import sign_rows
from tbn_tvm.schedules.plane import Plane
from tbn_tvm.schedules.rules import Workload

UNIT = 16
"""Channels of one tap that a lane takes at once."""

UNITS = 4
"""Such units in 64 columns: one for each quarter of eight lanes."""

SHARED_BYTES = 160 * 1024
"""Shared memory that every GPU since sm_80 gives a block, with room for the launch's own."""

LANE_REGISTERS = 168
"""Registers of a lane for data, of 255: the rest is for addresses."""

_LANE_PAD = 8
"""16-bit floats behind each position, which keep neighbours off one another's banks."""


@dataclass(frozen=True)
class Plan(Plane):
    """How a convolution falls into blocks, patches and columns."""

    config: Config

    @property
    def tile(self) -> tuple[int, int]:
        """Output positions of a block."""
        return self.config["tile_h"], self.config["tile_w"]

    @property
    def tiles(self) -> tuple[int, int]:
        """Blocks along height and width."""
        return tuple(-(-out // t) for out, t in zip(self.outputs, self.tile, strict=True))

    @property
    def positions(self) -> int:
        """Output positions of a block, rounded up to what its warps compute."""
        whole = 8 * self.config["warps_n"]
        return -(-math.prod(self.tile) // whole) * whole

    @property
    def patch(self) -> tuple[int, int]:
        """Input positions that the windows of a block cover."""
        return tuple(
            (t - 1) * step + (taps - 1) * space + 1
            for t, step, taps, space in zip(
                self.tile, self.strides, self.kernel, self.dilation, strict=True
            )
        )

    @property
    def pitch(self) -> int:
        """Floats from a position of the patch to the next."""
        return self.config["channels"] + _LANE_PAD

    @property
    def subs(self) -> int:
        """Units of a tap in a patch."""
        return self.config["channels"] // UNIT

    @property
    def units(self) -> int:
        """Units of a patch that mean something."""
        return self.workload.taps * self.subs

    @property
    def chunks(self) -> int:
        """Groups of 64 columns of a patch."""
        return -(-self.units // UNITS)

    @property
    def parts(self) -> int:
        """Patches: channels, so many at a time."""
        return -(-self.workload.channels // self.config["channels"])

    @property
    def dots_pitch(self) -> int:
        """Floats from a filter's dot products to the next filter's."""
        return self.positions + 8

    @property
    def turns(self) -> int:
        """Pieces of eight channels at a position that a thread brings for each part."""
        threads = 32 * self.config["warps_m"] * self.config["warps_n"]
        return -(-math.prod(self.patch) * (self.config["channels"] // 8) // threads)

    @property
    def lane_registers(self) -> int:
        """Registers of a lane that hold sums, activations and what is on its way."""
        tile_m = self.config["rows"] // self.config["warps_m"]
        tile_n = self.positions // self.config["warps_n"]
        return tile_m * tile_n // 32 + tile_n // 2 + tile_m // 16 + 4 * self.turns

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: the patch with 16 zeros behind it, then the dot products."""
        patch = (math.prod(self.patch) * self.pitch + UNIT) * 2
        return max(patch, self.config["rows"] * self.dots_pitch * 4)


class ConvMma(FusedKernel):
    """Tensor-core convolution over unique filters for float16 and bfloat16.

    Notes
    -----
    A block computes ``rows`` unique filters at ``tile_h`` x ``tile_w`` positions with ``warps_m``
    x ``warps_n`` warps, ``channels`` of the input at a time.
    """

    name = "conv_mma"
    version = 1

    def regimes(self, workload: Workload) -> tuple[Workload, ...]:
        return (workload if workload.batch is not None else workload.at_batch(8),)

    def space(self, workload: Workload) -> dict[str, tuple[int, ...]]:
        height, width = Plan(workload, {}).outputs
        tile_w = sorted({w for w in (8, 16, 32, min(width, 64)) if w <= width + 7})
        tile_h = sorted({min(height, h) for h in (1, 2, 4, 7, 8, 14, 16, 28)})
        return {
            "rows": (64, 128, 32, 16),
            "tile_h": tuple(tile_h),
            "tile_w": tuple(tile_w),
            "warps_m": (2, 1, 4),
            "warps_n": (2, 1, 4),
            "channels": (64, 32, 16),
        }

    def default(self, workload: Workload) -> dict[str, int]:
        unique, channels = workload.product.unique_rows, workload.channels
        rows = next((r for r in (64, 32) if unique >= r), 16)
        narrow = next((c for c in (16, 32) if channels <= c), 64)
        warps_m = 2 if rows >= 64 else 1
        warps_n = 4 // warps_m
        fitting = [
            config
            for tile_w in self.space(workload)["tile_w"]
            for tile_h in self.space(workload)["tile_h"]
            if self.valid(
                workload,
                config := {
                    "rows": rows,
                    "tile_h": tile_h,
                    "tile_w": tile_w,
                    "warps_m": warps_m,
                    "warps_n": warps_n,
                    "channels": narrow,
                },
            )
        ]
        smallest = {
            "rows": 16,
            "tile_h": 1,
            "tile_w": 8,
            "warps_m": 1,
            "warps_n": 1,
            "channels": 16,
        }
        return min(fitting, key=lambda c: _cost(Plan(workload, c)), default=smallest)

    def valid(self, workload: Workload, config: Config) -> bool:
        plan = Plan(workload, config)
        return (
            config["rows"] // config["warps_m"] >= TILE_ROWS
            and plan.lane_registers <= LANE_REGISTERS
            and config["channels"] < 2 * max(workload.channels, UNIT)
            and plan.shared_bytes <= SHARED_BYTES
        )

    def words_shape(self, workload: Workload, configs) -> tuple[tuple[int, ...], str]:
        plan = Plan(workload, configs[0])
        row_tiles = -(-workload.product.unique_rows // TILE_ROWS)
        columns = plan.parts * plan.chunks
        return (workload.product.groups, row_tiles, columns, fragments.LANES), "uint32"

    def layout(
        self, tile: np.ndarray, workload: Workload, configs: tuple[Config, ...]
    ) -> np.ndarray:
        return fragments.fragment_words(
            patch_columns(sign_rows(tile, workload.product), workload, configs[0]["channels"])
        )

    def emit(self, io: Operands, workload: Workload, configs: tuple[Config, ...]) -> None:
        _emit(io, workload, Plan(workload, configs[0]))


def patch_columns(signs: np.ndarray, workload: Workload, channels: int) -> np.ndarray:
    """Order the columns of filters as the kernel meets them.

    Parameters
    ----------
    signs : numpy.ndarray
        bool, shape ``(groups, rows, C * taps)``, channel-major.
    workload : Workload
        The convolution.
    channels : int
        Channels of a patch, a multiple of 16.

    Returns
    -------
    numpy.ndarray
        bool, shape ``(groups, rows, parts * columns of a part)``. A part is ``channels``
        channels; its columns are tap by tap, all channels of the part at each, padded to a
        multiple of 64. Channels past ``C`` and padding are false: they meet zeros.
    """
    groups, rows, _ = signs.shape
    taps, count = workload.taps, workload.channels
    parts = -(-count // channels)
    padded = np.zeros((groups, rows, parts * channels, taps), dtype=bool)
    padded[:, :, :count] = signs.reshape(groups, rows, count, taps)
    split = padded.reshape(groups, rows, parts, channels, taps).swapaxes(-1, -2)
    columns = split.reshape(groups, rows, parts, taps * channels)
    whole = -(-taps * channels // (UNIT * UNITS)) * UNIT * UNITS
    made = np.zeros((groups, rows, parts, whole), dtype=bool)
    made[..., : taps * channels] = columns
    return made.reshape(groups, rows, parts * whole)


def _cost(plan: Plan) -> float:
    """What a tile costs for each output, roughly: products computed, and elements brought in."""
    useful = math.prod(plan.outputs)
    computed = math.prod(plan.tiles) * plan.positions
    brought = math.prod(plan.tiles) * math.prod(plan.patch)
    batch = plan.workload.batch or 8
    blocks = (
        math.prod(plan.tiles) * batch * -(-plan.workload.product.unique_rows // plan.config["rows"])
    )
    idle = max(1.0, 132 / blocks)
    return (computed / useful + 0.25 * brought / useful + 8 / plan.positions) * idle


def _emit(io: Operands, workload: Workload, plan: Plan) -> None:
    product, dtype, config = workload.product, workload.dtype, plan.config
    unique, groups = product.unique_rows, product.groups
    height, width = plan.inputs
    channels, held = workload.channels, config["channels"]
    tile_h, tile_w = plan.tile
    tiles_h, tiles_w = plan.tiles
    out_h, out_w = plan.outputs
    patch_h, patch_w = plan.patch
    positions, pitch = plan.positions, plan.pitch
    warps_m, warps_n = config["warps_m"], config["warps_n"]
    threads = 32 * warps_m * warps_n
    tiles_m = config["rows"] // warps_m // TILE_ROWS
    tiles_n = positions // warps_n // 8
    row_blocks = -(-unique // config["rows"])
    row_tiles = -(-unique // TILE_ROWS)
    batch = io.x.shape[0]
    images = int(batch) if isinstance(batch, (int, tir.IntImm)) else T.cast(batch, "int32")
    x = flat_view(io.x, (batch, groups * channels, height, width))
    y = io.y
    zeros = patch_h * patch_w * pitch
    pieces, turns = patch_h * patch_w * (held // 8), plan.turns
    with grid(threads, x=images * (tiles_h * tiles_w), y=row_blocks * groups) as (
        place,
        strip,
        thread,
    ):
        pool = T.alloc_buffer((-(-plan.shared_bytes // 4),), "float32", scope="shared.dyn")
        patch = T.decl_buffer((zeros + UNIT,), dtype, data=pool.data, scope="shared.dyn")
        dots = T.decl_buffer(
            (config["rows"], plan.dots_pitch), "float32", data=pool.data, scope="shared.dyn"
        )
        acc = T.alloc_buffer((tiles_m * tiles_n * 4,), "float32", scope="local")
        word = T.alloc_buffer((tiles_m,), "uint32", scope="local")
        a = T.alloc_buffer((4,), "uint32", scope="local")
        act = T.alloc_buffer((tiles_n * 4,), "uint32", scope="local")
        coming = T.alloc_buffer((turns * 4,), "uint32", scope="local")
        coming_floats = T.decl_buffer((turns * 8,), dtype, data=coming.data, scope="local")
        warp, lane = thread // 32, thread % 32
        lane_row, quarter = lane // 4, lane % 4
        group, block = strip // row_blocks, strip % row_blocks
        image = T.cast(place // (tiles_h * tiles_w), "int64")
        top = place // tiles_w % tiles_h * tile_h
        left = place % tiles_w * tile_w
        first_tile = block * (config["rows"] // TILE_ROWS) + warp % warps_m * tiles_m
        first_position = warp // warps_m * (tiles_n * 8)

        def bring(part):
            """Read a part of the patch into registers."""
            for turn in range(turns):
                index = turn * threads + thread
                where, eight = index % (patch_h * patch_w), index // (patch_h * patch_w)
                row = top * plan.strides[0] - plan.before[0] + where // patch_w
                column = left * plan.strides[1] - plan.before[1] + where % patch_w
                inside = tir.all(row >= 0, row < height, column >= 0, column < width)
                if pieces % threads:
                    inside = tir.all(inside, index < pieces)
                for e in range(8):
                    channel = part * held + eight * 8 + e
                    there = inside if channels % held == 0 else tir.all(inside, channel < channels)
                    value = tir.if_then_else(
                        there,
                        x[image, group * channels + channel, row, column],
                        tir.const(0, dtype),
                    )
                    store(coming_floats, value, turn * 8 + e)

        def put():
            """Write what was read into shared memory, channels last."""
            for turn in range(turns):
                index = turn * threads + thread
                where, eight = index % (patch_h * patch_w), index // (patch_h * patch_w)
                with when(index < pieces):
                    store128(
                        T.address_of(patch[where * pitch + eight * 8]),
                        [coming[turn * 4 + e] for e in range(4)],
                    )

        for i in range(tiles_m * tiles_n * 4):
            store(acc, T.float32(0), i)
        with when(thread < UNIT):
            store(patch, tir.const(0, dtype), zeros + thread)
        bring(0)
        with T.serial(0, plan.parts) as part:
            barrier()
            put()
            barrier()
            with when(part + 1 < plan.parts):
                bring(part + 1)
            with T.serial(0, plan.chunks) as chunk:
                unit = chunk * UNITS + quarter
                tap, sub = unit // plan.subs, unit % plan.subs
                shift = tap // plan.kernel[1] * plan.dilation[0] * patch_w
                shift = (shift + tap % plan.kernel[1] * plan.dilation[1]) * pitch + sub * UNIT
                for i in range(tiles_m):
                    row_tile = tir.min(first_tile + i, row_tiles - 1)
                    store(word, io.words[group, row_tile, part * plan.chunks + chunk, lane], i)
                bases = []
                for i in range(tiles_n):
                    position = first_position + i * 8 + lane_row
                    if positions != tile_h * tile_w:
                        position = tir.min(position, tile_h * tile_w - 1)
                    base = position // tile_w * plan.strides[0] * patch_w
                    base = (base + position % tile_w * plan.strides[1]) * pitch
                    at = base + shift
                    if plan.units % UNITS:
                        at = tir.Select(unit < plan.units, at, zeros)
                    bases.append(at)
                for half in range(2):
                    for i, at in enumerate(bases):
                        load128(T.address_of(act[i * 4]), T.address_of(patch[at + half * 8]))
                    for s in range(2):
                        for i in range(tiles_m):
                            for j in range(4):
                                store(a, decoded(word[i], 8 * half + 4 * s + j, dtype), j)
                            for k in range(tiles_n):
                                mma(
                                    dtype,
                                    T.address_of(acc[(i * tiles_n + k) * 4]),
                                    [a[j] for j in range(4)],
                                    [act[k * 4 + 2 * s], act[k * 4 + 2 * s + 1]],
                                )
        barrier()
        for i in range(tiles_m):
            for k in range(tiles_n):
                for c in range(4):
                    row = (warp % warps_m * tiles_m + i) * TILE_ROWS + lane_row + 8 * (c // 2)
                    column = first_position + k * 8 + quarter * 2 + c % 2
                    store(dots, acc[(i * tiles_n + k) * 4 + c], row, column)
        barrier()
        vector = math.gcd(math.gcd(tile_w, out_w), 8)
        vectors = tile_h * tile_w // vector
        held_dots = T.alloc_buffer((vector,), "float32", scope="local")
        packed = T.alloc_buffer((vector,), str(y.dtype), scope="local")
        with T.serial(0, -(-config["rows"] * vectors // threads)) as turn:
            index = turn * threads + thread
            row, position = index // vectors, index % vectors * vector
            at_h, at_w = top + position // tile_w, left + position % tile_w
            filter_ = block * config["rows"] + row
            inside = tir.all(row < config["rows"], filter_ < unique, at_h < out_h, at_w < out_w)
            with when(inside):
                copy_floats(held_dots, 0, dots, (row, position), vector)
                for copy in each_copy(product):
                    local = copy * unique + filter_
                    out_row = group * product.group_rows + local

                    def write(out_row=out_row, copy=copy):
                        for e in range(vector):
                            value = output(io, workload, held_dots[e], out_row, copy)
                            indices = _indices(y, image, out_row, at_h, at_w + e)
                            store(packed, io.finish(value, indices), e)
                        if vector == 1:
                            store(y, packed[0], *_indices(y, image, out_row, at_h, at_w))
                            return
                        with T.vectorized(0, vector) as e:
                            store(y, packed[e], *_indices(y, image, out_row, at_h, at_w + e))

                    if product.group_rows % unique == 0:
                        write()
                    else:
                        with when(local < product.group_rows):
                            write()


def _indices(y, image, row, at_h, at_w) -> list:
    """Indices of an output: a convolution along one axis has no height."""
    return [image, row, at_h, at_w] if len(y.shape) == 4 else [image, row, at_w]
