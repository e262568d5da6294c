"""The schedule of kernels that no rule covers: correct everywhere, wasteful nowhere obvious."""

from __future__ import annotations

import math

import tvm
from tvm import s_tir
from tvm import tirx as tir

from tbn_tvm.schedules.reference import SCHEDULED

PARALLEL_ELEMENTS = 1 << 15
"""Elements of one sample from which an elementwise stage is worth sharing between threads."""


class ScheduleDefaults:
    """Inline elementwise stages into their readers and split reductions from their initial value.

    What follows a product (bias, batch norm, activation) is then computed where the output is
    written, with no buffer in between. A stage that a reduction reads again and again (padding,
    say) keeps its buffer. Functions marked ``tbn.scheduled`` are left alone.

    Parameters
    ----------
    threads : bool
        Whether large elementwise stages are shared between threads, which bare metal has not.
    """

    def __new__(cls, threads: bool = False) -> tvm.transform.Pass:
        @tvm.transform.module_pass(opt_level=0, name="ScheduleDefaults")
        def schedule(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
            for name, func in mod.functions_items():
                if isinstance(func, tir.PrimFunc) and SCHEDULED not in func.attrs:
                    mod[name] = _schedule(func, threads)
            return mod

        return schedule


def _schedule(func: tir.PrimFunc, threads: bool) -> tir.PrimFunc:
    sch = s_tir.Schedule(tvm.IRModule({"main": func}))
    # An opaque kernel (a sort, a scatter) is one block, without a root around it.
    root = sch.get_sblock(func.body.block.name_hint)
    for block in sch.get_child_blocks(root):
        consumers = sch.get_consumers(block)
        if not consumers or _reduces(sch, block):
            continue
        if any(_reduces(sch, consumer) for consumer in consumers):
            continue
        try:
            sch.compute_inline(block)
        except s_tir.ScheduleError:
            continue  # written through an index that does not invert: keeps its buffer
    for block in sch.get_child_blocks(root):
        kinds = [int(var.iter_type) for var in sch.get(block).iter_vars]
        loops = sch.get_loops(block)
        if _reduces(sch, block):
            if len(loops) == len(kinds):
                sch.decompose_reduction(block, loops[kinds.index(tir.IterVar.CommReduce)])
        elif len(loops) > 1:
            shared = threads and _elements(sch, loops) >= PARALLEL_ELEMENTS
            period = _period(sch, block)
            if period is not None:
                sch.split(loops[-1], [None, period])
            elif threads and len(loops) > 3 and _reads_tails_in_order(sch, block):
                # One long loop, which vectorises whatever the width of an image.
                sch.fuse(*loops[2:])
            if shared:
                sch.parallel(sch.fuse(*loops[: min(2, len(loops) - 1)]))
    return sch.mod["main"].with_attrs(func.attrs) if func.attrs else sch.mod["main"]


def _elements(sch: s_tir.Schedule, loops) -> int:
    """Iterations of a loop nest, symbolic extents counted as 1."""
    extents = (sch.get(loop).extent for loop in loops)
    return math.prod(int(extent) for extent in extents if isinstance(extent, tir.IntImm))


def _period(sch: s_tir.Schedule, block) -> int | None:
    """The period with which the last axis of an elementwise block reads, where it has one.

    Outputs of a tiled product repeat the unique rows: with a loop over one period innermost, reads
    are contiguous and vectorise.
    """
    block = sch.get(block)
    last = block.iter_vars[-1]
    indices = [axis.min for read in block.reads for axis in read.region]
    found = {
        int(index.b)
        for index in indices
        if isinstance(index, tir.FloorMod)
        and index.a.same_as(last.var)
        and isinstance(index.b, tir.IntImm)
    }
    extent = last.dom.extent
    if len(found) != 1 or not isinstance(extent, tir.IntImm):
        return None
    (period,) = found
    return period if 1 < period < int(extent) and int(extent) % period == 0 else None


def _reads_tails_in_order(sch: s_tir.Schedule, block) -> bool:
    """Whether all axes but the first two index whatever is read just as they do the output."""
    block = sch.get(block)
    tail = [axis.var for axis in block.iter_vars[2:]]
    for read in block.reads:
        indices = [axis.min for axis in read.region]
        last = indices[-len(tail) :]
        if len(last) == len(tail) and all(
            index.same_as(var) for index, var in zip(last, tail, strict=True)
        ):
            indices = indices[: -len(tail)]
        used = {var for index in indices for var in tir.analysis.undefined_vars(index, [])}
        if any(var.same_as(other) for var in tail for other in used):
            return False
    return True


def _reduces(sch: s_tir.Schedule, block) -> bool:
    return any(int(var.iter_type) == tir.IterVar.CommReduce for var in sch.get(block).iter_vars)
