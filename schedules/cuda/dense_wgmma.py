"""Dense products on Hopper's asynchronous tensor cores.

As :mod:`tbn_tvm.schedules.cuda.dense_mma`, but for many samples the products are a warpgroup's
(``wgmma``): decoded unique rows are the operand in registers, activations the operand in shared
memory, where one thread of a warp of its own has the copy engine (TMA) bring them. Barriers in
shared memory tell each side how far the other is; the next 64 columns are decoded while the last
are multiplied.
"""

from __future__ import annotations

from tvm import tirx as tir
from tvm.script.ir_builder import tirx as T

from tbn_tvm.schedules.cuda import fragments
from tbn_tvm.schedules.cuda.build import barrier, ceil_div, grid, store, when
from tbn_tvm.schedules.cuda.dense_mma import FEW_SAMPLES, SHARED_BYTES, DenseMma, samples32
from tbn_tvm.schedules.cuda.epilogue import store_copies, vector_width
from tbn_tvm.schedules.cuda.fragments import TILE_COLUMNS, TILE_ROWS
from tbn_tvm.schedules.cuda.intrinsics import (
    bytes_to_1024,
    decoded,
    fence_barrier_init,
    load_float,
    mbarrier_arrive,
    mbarrier_expect_tx,
    mbarrier_init,
    mbarrier_wait,
    registers,
    smem_descriptor,
    store_float,
    tma_load_2d,
    uniform,
    wgmma,
    wgmma_commit,
    wgmma_fence,
    wgmma_wait,
)
from tbn_tvm.schedules.fused import Operands
from tbn_tvm.schedules.kernel import Config
from tbn_tvm.schedules.rules import Workload

GROUP_ROWS = 64
"""Rows of a warpgroup's product."""

PROCESSORS = 132
"""Of an H100 or H200: only the default configuration depends on it."""

_SWIZZLE_128B = 3
"""``CU_TENSOR_MAP_SWIZZLE_128B``."""

_CONSUMER_REGISTERS = 240
_PRODUCER_REGISTERS = 24
"""Registers of a thread: 168 is what each of 384 has at first."""

_PAD = 4


class DenseWgmma(DenseMma):
    """Tensor-core product over unique rows for sm_90a; rows of activations in whole 16 bytes.

    Notes
    -----
    Few samples: as ``dense_mma``. Many: ``groups`` warpgroups of 64 rows by ``samples``, and
    ``stages`` of 64 columns of activations in flight.
    """

    name = "dense_wgmma"
    version = 1
    order = fragments.NATURAL

    def space(self, workload: Workload) -> dict[str, tuple[int, ...]]:
        if workload.batch <= FEW_SAMPLES:
            return super().space(workload)
        return {"groups": (2, 1), "samples": (256, 128, 64, 192), "stages": (4, 3, 2, 6, 8)}

    def default(self, workload: Workload) -> dict[str, int]:
        if workload.batch <= FEW_SAMPLES:
            return super().default(workload)
        rows = workload.product.unique_rows

        def time(config) -> float:
            block_rows = config["groups"] * GROUP_ROWS
            blocks = -(-rows // block_rows) * -(-workload.batch // config["samples"])
            # Narrow blocks read the same activations more often.
            work = block_rows * config["samples"] + 24 * (block_rows + config["samples"])
            return -(-blocks // PROCESSORS) * work

        deep = [
            {"groups": groups, "samples": samples, "stages": stages}
            for groups in (2, 1)
            for samples, stages in ((256, 4), (192, 5), (128, 6), (64, 8))
        ]
        return min(deep, key=time)

    def valid(self, workload: Workload, config: Config) -> bool:
        if workload.batch <= FEW_SAMPLES:
            return super().valid(workload, config)
        return _shared_bytes(config) <= SHARED_BYTES

    def emit_many(self, io: Operands, workload: Workload, config: Config) -> None:
        _emit(io, workload, config)


def _stage_bytes(config: Config) -> int:
    return config["samples"] * TILE_COLUMNS * 2


def _pool_bytes(config: Config) -> int:
    """The stages, and later in the same place the dot products."""
    dots = config["samples"] * (config["groups"] * GROUP_ROWS + _PAD) * 4
    return max(config["stages"] * _stage_bytes(config), dots)


def _shared_bytes(config: Config) -> int:
    """All of a block's shared memory, with what alignment to 1024 bytes may cost."""
    return _pool_bytes(config) + 1024 + 16 * config["stages"] + 16


def _tensor_map(io: Operands, workload: Workload, config: Config):
    """The host's description of the activations for the copy engine."""
    n = workload.product.geometry.n
    samples = io.samples
    described = T.handle("tensormap")
    T.Bind(T.tvm_stack_alloca("tensormap", 1), var=described)
    T.evaluate(
        T.tensormap_encode_tiled(
            described,
            io.x.data,
            T.int64(n),
            T.cast(samples, "int64"),
            T.int64(n * 2),
            TILE_COLUMNS,
            config["samples"],
            1,
            1,
            descriptor_dtype=workload.dtype,
            rank=2,
            swizzle=_SWIZZLE_128B,
            # Whole lines of 256 bytes.
            l2_promotion=3,
        )
    )
    return described


def _emit(io: Operands, workload: Workload, config: Config) -> None:
    product, dtype = workload.product, workload.dtype
    n, rows = product.geometry.n, product.unique_rows
    row_tiles, chunks = fragments.tile_counts(rows, n)
    groups, block_n, stages = config["groups"], config["samples"], config["stages"]
    block_m = groups * GROUP_ROWS
    consumers = groups * 4
    # A whole warpgroup brings activations, though one thread does it: registers are given up and
    # taken by warpgroups.
    threads = consumers * 32 + 128
    samples = samples32(io)
    described = _tensor_map(io, workload, config)
    with grid(threads, x=-(-rows // block_m), y=ceil_div(samples, block_n)) as (bm, bn, thread):
        pool = T.alloc_buffer((_shared_bytes(config) // 4,), "float32", scope="shared.dyn")
        stage = T.decl_buffer(
            (_shared_bytes(config) // 2,), dtype, data=pool.data, scope="shared.dyn"
        )
        barriers = T.decl_buffer(
            (_shared_bytes(config) // 8,), "uint64", data=pool.data, scope="shared.dyn"
        )
        skip = T.alloc_buffer((1,), "int32", scope="local")
        acc = T.alloc_buffer((block_n // 2,), "float32", scope="local")
        words = T.alloc_buffer((2,), "uint32", scope="local")
        operands = [T.alloc_buffer((16,), "uint32", scope="local") for _ in range(2)]
        which = T.alloc_buffer((1,), "int32", scope="local")
        store(which, uniform(thread // 32), 0)
        warp, lane = which[0], thread % 32
        store(skip, bytes_to_1024(T.address_of(pool[0])), 0)
        first_barrier = (skip[0] + _pool_bytes(config)) // 8

        def full(chunk):
            return T.address_of(barriers[first_barrier + chunk % stages])

        def empty(chunk):
            return T.address_of(barriers[first_barrier + stages + chunk % stages])

        meeting = T.address_of(barriers[first_barrier + 2 * stages])

        def parity(chunk):
            return T.cast(chunk // stages % 2, "uint32")

        def stage_at(chunk, column=0):
            return skip[0] // 2 + chunk % stages * (block_n * TILE_COLUMNS) + column

        with when(thread == 0):
            with T.serial(0, stages) as i:
                mbarrier_init(full(i), 1)
                mbarrier_init(empty(i), consumers)
            mbarrier_init(meeting, consumers * 32)
            fence_barrier_init()
        barrier()

        def produce():
            with when(lane == 0), T.serial(0, chunks) as chunk:
                with when(chunk >= stages):
                    mbarrier_wait(empty(chunk), parity(chunk - stages))
                mbarrier_expect_tx(full(chunk), _stage_bytes(config))
                tma_load_2d(
                    T.address_of(stage[stage_at(chunk)]),
                    T.address_of(described),
                    chunk * TILE_COLUMNS,
                    bn * block_n,
                    full(chunk),
                )

        def consume():
            tile = tir.min(bm * (block_m // TILE_ROWS) + warp, row_tiles - 1)
            for i in range(block_n // 2):
                store(acc, T.float32(0), i)
            for i in range(2):
                store(words, io.words[tile, min(i, chunks - 1), lane], i)

            def step(chunk, turn):
                for s in range(4):
                    for j in range(4):
                        value = decoded(words[turn], 4 * s + j, dtype)
                        store(operands[turn], value, 4 * s + j)
                store(words, io.words[tile, tir.min(chunk + 2, chunks - 1), lane], turn)
                mbarrier_wait(full(chunk), parity(chunk))
                wgmma_fence()
                for s in range(4):
                    at = T.address_of(stage[stage_at(chunk, 16 * s)])
                    wgmma(
                        dtype,
                        block_n,
                        T.address_of(acc[0]),
                        [operands[turn][4 * s + j] for j in range(4)],
                        smem_descriptor(at, 16, 1024, 1),
                    )
                wgmma_commit()
                # All but the last group are done: their activations may be overwritten.
                wgmma_wait(1)
                with when(tir.all(lane == 0, chunk > 0)):
                    mbarrier_arrive(empty(chunk - 1 + stages))

            with T.serial(0, chunks // 2) as pair:
                step(pair * 2, 0)
                step(pair * 2 + 1, 1)
            if chunks % 2:
                step(chunks - 1, 0)
            wgmma_wait(0)

        def meet(parity):
            """All consumers wait for one another."""
            mbarrier_arrive(meeting)
            mbarrier_wait(meeting, T.uint32(parity))

        def finish():
            """Write the scaled copies, by way of shared memory for the sake of wide stores."""
            dots_at, pitch = skip[0] // 4, block_m + _PAD
            meet(0)
            for k in range(block_n // 8):
                for c in range(4):
                    row = warp * TILE_ROWS + lane // 4 + 8 * (c // 2)
                    column = k * 8 + lane % 4 * 2 + c % 2
                    at = T.address_of(pool[dots_at + column * pitch + row])
                    store_float(at, acc[k * 4 + c])
            meet(1)
            vector = vector_width(workload)
            vectors = block_m // vector
            held = T.alloc_buffer((vector,), "float32", scope="local")
            with T.serial(0, -(-block_n * vectors // (consumers * 32))) as turn:
                index = turn * (consumers * 32) + thread
                column, row = index // vectors, index % vectors * vector
                sample, unique = bn * block_n + column, bm * block_m + row
                with when(tir.all(column < block_n, sample < samples, unique < rows)):
                    for i in range(vector):
                        at = T.address_of(pool[dots_at + column * pitch + row + i])
                        store(held, load_float(at), i)
                    store_copies(io, workload, sample, unique, lambda lane: held[lane], vector)

        with T.If(warp < consumers):
            with T.Then():
                if groups == 2:
                    registers("inc", _CONSUMER_REGISTERS)
                consume()
                finish()
            with T.Else():
                if groups == 2:
                    registers("dec", _PRODUCER_REGISTERS)
                with when(warp == consumers):
                    produce()
