"""Dense products with few unique rows, or rows of several segments: signs as lane masks."""

from __future__ import annotations

import numpy as np
from tvm import tirx as tir
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tbn_tvm.schedules.cpu import masks
from tbn_tvm.schedules.cpu.dense import SERIAL_WORK
from tbn_tvm.schedules.kernel import Config, Kernel
from tbn_tvm.schedules.reference import SCHEDULED
from tbn_tvm.schedules.rules import Workload


class MaskDense(Kernel):
    """Each piece of constant alpha of each unique row is a dot product along the input.

    Right where lanes full of rows are not to be had: for a handful of rows, and for tiles shorter
    than a row, whose pieces start anywhere. Threads share pairs of sample and piece.
    """

    name = "masks"

    def regimes(self, workload: Workload) -> tuple[Workload, ...]:
        return (workload if workload.batch else workload.at_batch(1),)

    def layout(
        self, tile: np.ndarray, workload: Workload, configs: tuple[Config, ...]
    ) -> np.ndarray:
        return masks.item_words(tile, workload.product, masks.all_items(workload.product))

    def prim_func(self, workload: Workload, configs: tuple[Config, ...]) -> tir.PrimFunc:
        product = workload.product
        items = masks.all_items(product)
        work = product.unique_rows * product.geometry.n
        with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
            samples = tir.Var("samples", "int64") if workload.batch is None else workload.batch
            x = T.arg("x", tir.decl_buffer((samples, product.geometry.n), workload.dtype, "x"))
            size = masks.item_words_size(product, items)
            words = T.arg("words", tir.decl_buffer((size,), "uint32", "words"))
            shape = (samples, product.unique_rows, product.segments)
            dots = T.arg("dots", tir.decl_buffer(shape, "float32", "dots"))

            def over_pairs(loop) -> None:
                with loop(0, samples * len(items)) as pair:
                    sample, number = pair // len(items), pair % len(items)
                    masks.emit_item(x, words, dots, sample, number.astype("int32"), 0)

            if workload.batch is not None:
                over_pairs(T.serial if samples * work < SERIAL_WORK else T.parallel)
            else:
                with T.If(samples * work < SERIAL_WORK):
                    with T.Then():
                        over_pairs(T.serial)
                    with T.Else():
                        over_pairs(T.parallel)
        return builder.get().with_attrs({"tirx.noalias": True, SCHEDULED: True})
