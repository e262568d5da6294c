"""Dense products on ordinary GPU cores: any dtype, any GPU, CUDA or OpenCL.

Few samples: a lane a row, warps share the columns, activations lie in shared memory once a block
and each is added with its sign bit flipped or not: no multiplication. Many samples: a word of
signs becomes +-1 once for all samples of a thread's corner, whose sums are multiply-adds. Sums are
float32 and are added in one fixed order.
"""

from __future__ import annotations

import numpy as np
from tvm import tirx as tir
from tvm.script.ir_builder import tirx as T

from tbn_tvm.schedules.cuda.build import barrier, ceil_div, flat_view, grid, store, when
from tbn_tvm.schedules.cuda.epilogue import store_copies, vector_width
from tbn_tvm.schedules.fused import FusedKernel, Operands
from tbn_tvm.schedules.kernel import Config
from tbn_tvm.schedules.layouts import sign_rows
from tbn_tvm.schedules.rules import Workload

FEW_SAMPLES = 8
WORD = 32
LANES = 32

_SHARED_FLOATS = 4096
"""Activations in shared memory at once, of all samples together: 16 KiB."""


def row_words(signs: np.ndarray) -> np.ndarray:
    """Lay sign rows out with neighbouring rows side by side.

    Parameters
    ----------
    signs : numpy.ndarray
        bool, shape ``(rows, columns)``: true for +1.

    Returns
    -------
    numpy.ndarray
        uint32, shape ``(ceil(columns / 32), rows)``: bit ``b`` of word ``[w, i]`` is row ``i``,
        column ``32 * w + b``; columns past the end are clear.
    """
    rows, columns = signs.shape
    words = -(-columns // WORD)
    padded = np.zeros((rows, words * WORD), dtype=bool)
    padded[:, :columns] = signs
    packed = np.packbits(padded, axis=1, bitorder="little").view("<u4")
    return np.ascontiguousarray(packed.T.astype(np.uint32))


class DenseSimt(FusedKernel):
    """Products over unique rows without tensor cores, any batch.

    Notes
    -----
    Few samples (at most 8): ``warps`` that share the columns of 32 rows. Many: a block of
    ``rows`` x ``samples``, of which a thread computes ``corner`` x ``corner``.
    """

    name = "dense_simt"
    version = 1

    def regimes(self, workload: Workload) -> tuple[Workload, ...]:
        if workload.batch is not None:
            return (workload,)
        return workload.at_batch(1), workload.at_batch(FEW_SAMPLES), workload.at_batch(1024)

    def space(self, workload: Workload) -> dict[str, tuple[int, ...]]:
        if workload.batch <= FEW_SAMPLES:
            return {"warps": (8, 4, 16, 32)}
        return {"rows": (64, 128, 32), "samples": (64, 128, 32), "corner": (4, 8)}

    def default(self, workload: Workload) -> dict[str, int]:
        rows, columns = workload.product.unique_rows, workload.product.geometry.n
        if workload.batch <= FEW_SAMPLES:
            words = -(-columns // WORD)
            return {"warps": next((w for w in (16, 8) if words >= 2 * w), 4)}
        large = rows >= 128 and workload.batch >= 1024
        block = 128 if large else 64
        return {"rows": block, "samples": block, "corner": 8 if large else 4}

    def valid(self, workload: Workload, config: Config) -> bool:
        if workload.batch <= FEW_SAMPLES:
            return True
        threads = config["rows"] * config["samples"] // config["corner"] ** 2
        return 32 <= threads <= 1024 and config["samples"] <= threads

    def words_shape(self, workload: Workload, configs) -> tuple[tuple[int, ...], str]:
        product = workload.product
        return (-(-product.geometry.n // WORD), product.unique_rows), "uint32"

    def layout(
        self, tile: np.ndarray, workload: Workload, configs: tuple[Config, ...]
    ) -> np.ndarray:
        (signs,) = sign_rows(tile, workload.product)
        return row_words(signs)

    def emit(self, io: Operands, workload: Workload, configs: tuple[Config, ...]) -> None:
        if workload.batch is not None:
            if workload.batch <= FEW_SAMPLES:
                _emit_few(io, workload, configs[0], workload.batch)
            else:
                _emit_many(io, workload, configs[0])
            return
        one, few, many = configs
        samples = io.samples
        with T.If(samples <= 1):
            with T.Then():
                _emit_few(io, workload, one, 1)
            with T.Else(), T.If(samples <= FEW_SAMPLES):
                with T.Then():
                    _emit_few(io, workload, few, FEW_SAMPLES)
                with T.Else():
                    _emit_many(io, workload, many)


def _samples32(io: Operands):
    samples = io.samples
    return int(samples) if isinstance(samples, (int, tir.IntImm)) else T.cast(samples, "int32")


def _bits(value):
    return T.reinterpret("uint32", value)


def _float(bits):
    return T.reinterpret("float32", bits)


def _activation(x, sample, column, samples, n):
    """An activation as float32, zero past the ends."""
    value = x[T.cast(sample, "int64"), column].astype("float32")
    inside = tir.all(sample < samples, column < n)
    return tir.if_then_else(inside, value, T.float32(0))


def _emit_few(io: Operands, workload: Workload, config: Config, most: int) -> None:
    """At most ``most`` samples: a lane a row, the columns shared between warps."""
    product = workload.product
    n, rows = product.geometry.n, product.unique_rows
    words = -(-n // WORD)
    warps = min(config["warps"], words)
    threads = warps * LANES
    held_words = min(words, _SHARED_FLOATS // most // WORD)
    held = held_words * WORD
    samples = _samples32(io)
    x = flat_view(io.x, (io.samples, n))
    with grid(threads, x=-(-rows // LANES)) as (block, thread):
        near = T.alloc_buffer((most, held), "float32", scope="shared")
        sums = T.alloc_buffer((warps, most, LANES), "float32", scope="shared")
        acc = T.alloc_buffer((most,), "float32", scope="local")
        act = T.alloc_buffer((4,), "float32", scope="local")
        word = T.alloc_buffer((1,), "uint32", scope="local")
        lane, warp = thread % LANES, thread // LANES
        row = block * LANES + lane
        for sample in range(most):
            store(acc, T.float32(0), sample)
        with T.serial(0, -(-words // held_words)) as part:
            barrier()
            with T.serial(0, -(-most * held // threads)) as turn:
                index = turn * threads + thread
                sample, column = index // held, index % held
                with when(index < most * held):
                    value = _activation(x, sample, part * held + column, samples, n)
                    store(near, value, sample, column)
            barrier()
            with T.serial(0, -(-held_words // warps)) as turn:
                local = turn * warps + warp
                at = part * held_words + local
                with when(tir.all(local < held_words, at < words)):
                    store(word, io.words[at, tir.min(row, rows - 1)], 0)
                    for four in range(WORD // 4):
                        for sample in range(most):
                            with T.vectorized(0, 4) as i:
                                store(act, near[sample, local * WORD + four * 4 + i], i)
                            for i in range(4):
                                shift = 31 - four * 4 - i
                                sign = T.bitwise_and(
                                    word[0] << T.uint32(shift), T.uint32(0x80000000)
                                )
                                # A set bit flips: the sum is the dot product's negative.
                                term = _float(T.bitwise_xor(_bits(act[i]), sign))
                                store(acc, acc[sample] + term, sample)
        # TVM may give the sums the activations' memory.
        barrier()
        for sample in range(most):
            store(sums, acc[sample], warp, sample, lane)
        barrier()
        with T.serial(0, -(-most // warps)) as turn:
            sample = turn * warps + warp
            with when(tir.all(sample < most, sample < samples, row < rows)):
                total = T.alloc_buffer((1,), "float32", scope="local")
                store(total, T.float32(0), 0)
                with T.serial(0, warps) as other:
                    store(total, total[0] - sums[other, sample, lane], 0)
                store_copies(io, workload, sample, row, lambda _lane: total[0])


def _emit_many(io: Operands, workload: Workload, config: Config) -> None:
    """Many samples: a thread multiplies a corner of rows with a corner of samples."""
    product = workload.product
    n, rows = product.geometry.n, product.unique_rows
    words = -(-n // WORD)
    block_m, block_n, corner = config["rows"], config["samples"], config["corner"]
    across, along = block_m // corner, block_n // corner
    threads = across * along
    samples = _samples32(io)
    x = flat_view(io.x, (io.samples, n))
    with grid(threads, x=-(-rows // block_m), y=ceil_div(samples, block_n)) as (bm, bn, thread):
        # Padding keeps the transposing stores off one another's banks. In one dimension: of two,
        # TVM cuts off what is never read.
        pitch = block_n + 4
        near = T.alloc_buffer((WORD * pitch,), "float32", scope="shared")
        acc = T.alloc_buffer((corner * corner,), "float32", scope="local")
        act = T.alloc_buffer((corner,), "float32", scope="local")
        signs = T.alloc_buffer((corner,), "float32", scope="local")
        word = T.alloc_buffer((corner,), "uint32", scope="local")
        first_row = bm * block_m + thread % across * corner
        first_column = thread // across * corner
        for i in range(corner * corner):
            store(acc, T.float32(0), i)
        with T.serial(0, words) as at:
            barrier()
            with T.serial(0, -(-block_n * WORD // threads)) as turn:
                index = turn * threads + thread
                sample, column = index // WORD, index % WORD
                with when(sample < block_n):
                    value = _activation(x, bn * block_n + sample, at * WORD + column, samples, n)
                    store(near, value, column * pitch + sample)
            for i in range(corner):
                store(word, io.words[at, tir.min(first_row + i, rows - 1)], i)
            barrier()
            with T.serial(0, WORD) as column:
                for start in range(0, corner, 4):
                    with T.vectorized(0, 4) as i:
                        store(act, near[column * pitch + first_column + start + i], start + i)
                shift = T.cast(WORD - 1 - column, "uint32")
                for i in range(corner):
                    sign = T.bitwise_and(word[i] << shift, T.uint32(0x80000000))
                    store(signs, _float(T.bitwise_xor(sign, T.uint32(0xBF800000))), i)
                for j in range(corner):
                    for i in range(corner):
                        total = acc[j * corner + i] + signs[i] * act[j]
                        store(acc, total, j * corner + i)
        vector = min(vector_width(workload), corner)
        for j in range(corner):
            sample = bn * block_n + first_column + j
            for start in range(0, corner, vector):
                row = first_row + start
                with when(tir.all(sample < samples, row < rows)):
                    store_copies(
                        io,
                        workload,
                        sample,
                        row,
                        lambda lane, j=j, start=start: acc[j * corner + start + lane],
                        vector,
                    )
