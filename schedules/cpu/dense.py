"""The frame of dense CPU kernels: samples in blocks, rows in blocks, threads over one of them.

A kernel prepares something from a block of samples (tables, or a padded copy) and then walks blocks
of rows with it. With few samples threads share the rows; with many they share the samples. For a
symbolic batch the function holds the code of both ranges and branches on the host.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import tirx as tir
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tbn_tvm.schedules.cpu import masks
from tbn_tvm.schedules.kernel import Config, Kernel
from tbn_tvm.schedules.layouts import sign_rows
from tbn_tvm.schedules.reference import SCHEDULED
from tbn_tvm.schedules.rules import Workload

SERIAL_WORK = 1 << 21
"""Multiply-adds below which threads cost more than they save."""

MANY_SAMPLES = 8
"""From so many samples on, threads share samples; below, they share rows."""

MAX_ACCUMULATORS = 24
"""Vectors of sums a block may keep in registers."""


@dataclass(frozen=True)
class Block:
    """A block of samples and its scratch memory.

    Attributes
    ----------
    x, words, dots : Buffer
        The function's parameters; ``words`` is one-dimensional.
    scratch : Buffer
        What the kernel prepared.
    first : expression
        The first sample.
    samples : int
        How many.
    """

    x: tir.Buffer
    words: tir.Buffer
    dots: tir.Buffer
    scratch: tir.Buffer
    first: tir.Expr
    samples: int


class DenseKernel(Kernel):
    """A dense product in blocks; subclasses prepare samples and walk rows.

    Rows that fall into several segments of constant alpha are few where a tile is longer than a
    row: those are computed by :mod:`masks`, after the others. Subclasses compute whole rows.

    Attributes
    ----------
    lanes : int
        Rows in a vector.

    Notes
    -----
    Parameters: ``block`` is the number of vectors of rows, ``samples`` the number of samples, that
    are computed together in registers.
    """

    lanes: int

    @abstractmethod
    def row_words(self, signs: np.ndarray) -> np.ndarray:
        """Sign rows, bool ``(rows, n)``, as uint32 ``(vectors of rows, ..., lanes)``."""

    @abstractmethod
    def scratch_shape(self, n: int, samples: int) -> tuple[int, ...]:
        """Float32 scratch memory of a block of samples."""

    @abstractmethod
    def prepare(self, block: Block, n: int) -> None:
        """Fill a block's scratch memory."""

    @abstractmethod
    def walk(self, block: Block, n: int, first, vectors: int) -> None:
        """Compute dot products of a block with ``vectors`` vectors of rows from ``first`` on."""

    def regimes(self, workload: Workload) -> tuple[Workload, ...]:
        if workload.batch is None:
            return workload.at_batch(1), workload.at_batch(8 * MANY_SAMPLES)
        return (workload,)

    def valid(self, workload: Workload, config: Config) -> bool:
        batch = workload.batch or 1
        return (
            config["block"] * config["samples"] <= MAX_ACCUMULATORS
            and config["samples"] <= batch
            and config["block"] <= self.vectors(workload)
        )

    def vectors(self, workload: Workload) -> int:
        """Vectors that the unique rows fill."""
        return -(-workload.product.unique_rows // self.lanes)

    def rows(self, workload: Workload, configs: tuple[Config, ...]) -> int:
        return self.vectors(workload) * self.lanes

    def layout(
        self, tile: np.ndarray, workload: Workload, configs: tuple[Config, ...]
    ) -> np.ndarray:
        (signs,) = sign_rows(tile, workload.product)
        words = self.row_words(signs).reshape(-1)
        items = masks.split_items(workload.product)
        return np.concatenate([words, masks.item_words(tile, workload.product, items)])

    def prim_func(self, workload: Workload, configs: tuple[Config, ...]) -> tir.PrimFunc:
        product, n = workload.product, workload.product.geometry.n
        items = masks.split_items(product)
        head = self.row_words(np.zeros((product.unique_rows, n), dtype=bool)).size
        rows, vectors = self.rows(workload, configs), self.vectors(workload)
        work = product.unique_rows * n
        # A configuration may come from another workload's record: fit it.
        sizes = [
            (min(config["block"], vectors), min(config["samples"], workload.batch or 1 << 20))
            for config in configs
        ]

        def in_block(first, count: int, size: int, loop) -> None:
            scratch = T.alloc_buffer(self.scratch_shape(n, count), "float32")
            block = Block(x, words, dots, scratch, first, count)
            self.prepare(block, n)
            whole, rest = divmod(vectors, size)

            def at(index) -> None:
                self.walk(block, n, index * size, size)

            def last() -> None:
                self.walk(block, n, whole * size, rest)

            _counted(loop, whole, at, int(rest > 0), lambda _index: last())
            if items:
                with T.serial(0, count) as s:
                    masks.emit(x, words, dots, first + s, len(items), head)

        def over_samples(config, loop, inner) -> None:
            size, count = sizes[config]
            _counted(
                loop,
                samples // count,
                lambda i: in_block(i * count, count, size, inner),
                0 if count == 1 else samples % count,
                lambda i: in_block(samples // count * count + i, 1, size, inner),
            )

        def few() -> None:
            either(
                samples * work < SERIAL_WORK,
                lambda: over_samples(0, T.serial, T.serial),
                lambda: over_samples(0, T.serial, T.parallel),
            )

        def many() -> None:
            either(
                samples * work < SERIAL_WORK,
                lambda: over_samples(-1, T.serial, T.serial),
                lambda: over_samples(-1, T.parallel, T.serial),
            )

        with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
            samples = tir.Var("samples", "int64") if workload.batch is None else workload.batch
            x = T.arg("x", tir.decl_buffer((samples, n), workload.dtype, "x"))
            size = head + masks.item_words_size(product, items)
            words = T.arg("words", tir.decl_buffer((size,), "uint32", "words"))
            dots = T.arg(
                "dots", tir.decl_buffer((samples, rows, product.segments), "float32", "dots")
            )
            either(samples < MANY_SAMPLES, few, many)
        return builder.get().with_attrs({"tirx.noalias": True, SCHEDULED: True})

    def store(self, block: Block, sample: int, row, values: Callable) -> None:
        """Store a vector of sums at ``dots``; ``values(lane)`` is one of them."""
        segments = int(block.dots.shape[2])
        with T.vectorized(0, self.lanes) as lane:
            T.buffer_store(block.dots, values(lane), [block.first + sample, row + lane, 0])
        if segments > 1:
            with T.serial(0, self.lanes) as lane, T.serial(0, segments - 1) as segment:
                T.buffer_store(
                    block.dots, T.float32(0), [block.first + sample, row + lane, segment + 1]
                )


def either(condition, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
    """``if`` decided now where it can be, by the function where not."""
    if isinstance(condition, bool):
        (then if condition else otherwise)()
        return
    with T.If(condition):
        with T.Then():
            then()
        with T.Else():
            otherwise()


def _counted(loop, whole, at: Callable, rest, last: Callable) -> None:
    """A loop of ``whole`` iterations of ``at`` and ``rest`` more of ``last``."""
    if isinstance(rest, int) and rest == 0:
        with loop(0, whole) as i:
            at(i)
    elif isinstance(whole, int) and whole == 0:
        with loop(0, rest) as i:
            last(i)
    elif loop is T.serial:
        with loop(0, whole) as i:
            at(i)
        with loop(0, rest) as i:
            last(i)
    else:
        with loop(0, whole + rest) as i:
            either(i < whole, lambda: at(i), lambda: last(i - whole))
