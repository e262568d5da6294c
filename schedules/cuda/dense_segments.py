"""Dense products whose alphas change inside a row: tiles that are no whole rows.

A block computes the segments of a few unique rows for one sample, each segment shared between
threads and added up in one order, keeps them in shared memory and mixes them into every output
that the rows serve. It covers every alignment, dtype and GPU.
"""

from __future__ import annotations

import numpy as np
from tvm import tirx as tir
from tvm.script.ir_builder import tirx as T

from tbn_tvm.schedules.cuda.build import barrier, flat_view, grid, store, when
from tbn_tvm.schedules.cuda.epilogue import copies_of
from tbn_tvm.schedules.fused import FusedKernel, Operands
from tbn_tvm.schedules.kernel import Config
from tbn_tvm.schedules.rules import Workload

MAX_SEGMENTS = 4096
"""Segments of a row whose dot products fit into shared memory."""

_THREADS = 256
_WORD = 32


def tile_words(tile: np.ndarray) -> np.ndarray:
    """The packed tile as uint32, padded with clear bits: bit ``b`` of word ``w`` is element
    ``32 * w + b``."""
    padded = np.zeros(-(-len(tile) // 4) * 4, np.uint8)
    padded[: len(tile)] = tile
    return padded.view("<u4").astype(np.uint32)


class DenseSegments(FusedKernel):
    """Dot products a segment, then a small mix with the alphas.

    Notes
    -----
    ``pairs``: (row, segment) pairs a block computes, about; ``outputs``: outputs it writes at
    least, as far as its rows have so many.
    """

    name = "dense_segments"
    version = 1

    def regimes(self, workload: Workload) -> tuple[Workload, ...]:
        return (workload if workload.batch is not None else workload.at_batch(8),)

    def space(self, workload: Workload) -> dict[str, tuple[int, ...]]:
        return {"pairs": (64, 16, 256), "outputs": (256, 1024, 4096)}

    def words_shape(self, workload: Workload, configs) -> tuple[tuple[int, ...], str]:
        return (-(-workload.product.geometry.q // _WORD),), "uint32"

    def layout(
        self, tile: np.ndarray, workload: Workload, configs: tuple[Config, ...]
    ) -> np.ndarray:
        return tile_words(tile)

    def emit(self, io: Operands, workload: Workload, configs: tuple[Config, ...]) -> None:
        product, (config,) = workload.product, configs
        m, n, q = product.geometry.m, product.geometry.n, product.geometry.q
        unique, segments, copies = product.unique_rows, product.segments, copies_of(product)
        rows = max(1, min(unique, config["pairs"] // segments))
        pairs = rows * segments
        parts = 1
        while parts * 2 * pairs <= _THREADS and parts * 2 <= product.segment_length:
            parts *= 2
        block_copies = max(1, min(copies, config["outputs"] // rows))
        copy_blocks = -(-copies // block_copies)
        x = flat_view(io.x, (io.samples, n))
        samples = io.samples
        samples = (
            int(samples) if isinstance(samples, (int, tir.IntImm)) else T.cast(samples, "int32")
        )
        blocks = -(-unique // rows) * copy_blocks
        # Samples come first: their number has no limit on that axis of the grid.
        with grid(_THREADS, x=samples, y=blocks) as (sample, block, thread):
            partial = T.alloc_buffer((pairs * parts,), "float32", scope="shared")
            dots = T.alloc_buffer((pairs,), "float32", scope="shared")
            total = T.alloc_buffer((1,), "float32", scope="local")
            first_row = block // copy_blocks * rows
            first_copy = block % copy_blocks * block_copies
            wide = T.cast(sample, "int64")
            with T.serial(0, -(-pairs * parts // _THREADS)) as turn:
                index = turn * _THREADS + thread
                pair, part = index // parts, index % parts
                row, segment = first_row + pair // segments, pair % segments
                phase = _phase(row, n, q)
                start = tir.max(segment * q - phase, 0)
                stop = tir.min((segment + 1) * q - phase, n)
                with when(tir.all(index < pairs * parts, row < unique)):
                    store(total, T.float32(0), 0)
                    with T.serial(0, -(-product.segment_length // parts)) as step:
                        element = start + step * parts + part
                        with when(element < stop):
                            bit = phase + element - segment * q
                            word = io.words[bit // _WORD] >> T.cast(bit % _WORD, "uint32")
                            value = x[wide, element].astype("float32")
                            clear = T.bitwise_and(word, T.uint32(1)) == T.uint32(0)
                            store(total, total[0] + tir.Select(clear, -value, value), 0)
                    store(partial, total[0], index)
            barrier()
            with T.serial(0, -(-pairs // _THREADS)) as turn:
                pair = turn * _THREADS + thread
                with when(tir.all(pair < pairs, first_row + pair // segments < unique)):
                    store(total, T.float32(0), 0)
                    with T.serial(0, parts) as part:
                        store(total, total[0] + partial[pair * parts + part], 0)
                    store(dots, total[0], pair)
            barrier()
            lead = io.lead_indices(sample)
            with T.serial(0, -(-rows * block_copies // _THREADS)) as turn:
                index = turn * _THREADS + thread
                local, copy = index % rows, first_copy + index // rows
                output = copy * unique + first_row + local
                inside = tir.all(
                    index < rows * block_copies,
                    copy < copies,
                    first_row + local < unique,
                    output < m,
                )
                with when(inside):
                    bias = T.float32(0) if io.bias is None else io.bias[output].astype("float32")
                    store(total, bias, 0)
                    with T.serial(0, segments) as segment:
                        # Rows with fewer segments than the longest have no alpha for the rest.
                        exists = segment * q - _phase(output, n, q) < n
                        at = tir.min(product.alpha_index(output, segment), product.alpha_count - 1)
                        term = io.alpha[at].astype("float32") * dots[local * segments + segment]
                        more = tir.Select(exists, term, T.float32(0))
                        store(total, total[0] + more, 0)
                    store(io.y, io.finish(total[0], [*lead, output]), *lead, output)


def _phase(row, n: int, q: int):
    """Where in the tile a row starts; in 64 bits, as ``row * n`` may have no place in 32."""
    return T.cast(T.cast(row, "int64") * n % q, "int32")
