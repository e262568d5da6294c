"""The schedule of kernels that no rule covers: correct everywhere, wasteful nowhere obvious."""

from __future__ import annotations

import tvm
from tbn_tvm.schedules.reference import SCHEDULED
from tvm import s_tir
from tvm import tirx as tir


@tvm.transform.module_pass(opt_level=0, name="ScheduleDefaults")
class ScheduleDefaults:
    """Inline elementwise stages into their readers and split reductions from their initial value.

    What follows a product (bias, batch norm, activation) is then computed where the output is
    written, with no buffer in between. A stage that a reduction reads again and again (padding,
    say) keeps its buffer. Functions marked ``tbn.scheduled`` are left alone.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        for name, func in mod.functions_items():
            if isinstance(func, tir.PrimFunc) and SCHEDULED not in func.attrs:
                mod[name] = _schedule(func)
        return mod


def _schedule(func: tir.PrimFunc) -> tir.PrimFunc:
    sch = s_tir.Schedule(tvm.IRModule({"main": func}))
    root = sch.get_sblock("root")
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
        if not _reduces(sch, block):
            continue
        kinds = [int(var.iter_type) for var in sch.get(block).iter_vars]
        loops = sch.get_loops(block)
        if len(loops) == len(kinds):
            sch.decompose_reduction(block, loops[kinds.index(tir.IterVar.CommReduce)])
    return sch.mod["main"].with_attrs(func.attrs) if func.attrs else sch.mod["main"]


def _reduces(sch: s_tir.Schedule, block) -> bool:
    return any(int(var.iter_type) == tir.IterVar.CommReduce for var in sch.get(block).iter_vars)
