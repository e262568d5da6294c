"""Sorts and scans of exported PyTorch programs that TVM's importer does not know."""

from __future__ import annotations

import math
from functools import partial

from torch import fx
from tvm import relax, te
from tvm import tirx as tir

from tbn_tvm.errors import FormatError


def stable_sort(node: fx.Node, importer) -> relax.Var:
    """``sort`` with ``stable`` said; TVM's sorts of CPUs and ours of boards are stable."""
    x, *_rest = importer.retrieve_args(node)
    axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else -1)
    descending = node.kwargs.get("descending", node.args[2] if len(node.args) > 2 else False)
    emit = importer.block_builder.emit
    places = emit(relax.op.argsort(x, axis, descending, dtype="int64"))
    values = emit(relax.op.gather_elements(x, places, axis=axis % x.ty.ndim))
    return emit(relax.Tuple([values, places]))


def log_cumsum_exp(node: fx.Node, importer) -> relax.Var:
    """The logarithm of sums of exponentials so far, by sums over distances that double.

    No exponential is of a positive number: what is far below another does not vanish before it is
    put out, and nothing overflows.

    Raises
    ------
    FormatError
        Where the axis is of free size.
    """
    x, axis = importer.retrieve_args(node)[:2]
    emit, dtype = importer.block_builder.emit, x.ty.dtype.dtype
    axis %= x.ty.ndim
    extent = x.ty.shape.values[axis]
    if not isinstance(extent, tir.IntImm):
        raise FormatError(f"logcumsumexp over an axis of free size ({extent}): fix it")
    exact = emit(relax.op.astype(x, "float32")) if dtype in ("float16", "bfloat16") else x
    distance = 1
    while distance < int(extent):
        # A kernel for each distance: fused, all would be computed again for each use.
        summed = partial(_log_sums, axis=axis, distance=distance)
        kernel = importer.block_builder.call_te(
            summed, exact, primfunc_name_hint="logcumsumexp", primfunc_attrs={"op_pattern": 8}
        )
        exact = emit(kernel)
        distance *= 2
    return emit(relax.op.astype(exact, dtype))


def _log_sums(x: te.Tensor, axis: int, distance: int) -> te.Tensor:
    """Each element and the one so far before it, where there is one, by ``log(exp + exp)``."""

    def value(*at):
        own, place = x(*at), at[axis]
        before = x(*at[:axis], tir.max(place - distance, 0), *at[axis + 1 :])
        more = tir.log(tir.const(1, x.dtype) + tir.exp(-tir.abs(own - before)))
        # Equal numbers, which may be infinite, are not subtracted.
        more = tir.Select(own.equal(before), tir.const(math.log(2), x.dtype), more)
        return tir.Select(place < distance, own, tir.max(own, before) + more)

    return te.compute(x.shape, value, name="logcumsumexp")


SCANS = {"logcumsumexp.default": log_cumsum_exp, "sort.stable": stable_sort}
"""Converters."""
