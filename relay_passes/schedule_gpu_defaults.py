"""The GPU schedule of every function that no kernel of ours covers."""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import s_tir
from tvm import tirx as tir
from tvm.s_tir import dlight

from tbn_tvm.schedules.reference import SCHEDULED, TILED_PRODUCT

THREADS = 256
"""Threads of a block in the default schedule: full occupancy on every architecture so far."""

_TVM_SCHEDULED = "tirx.is_scheduled"
# Transpose comes first: the rules behind it would take a transposition for elementwise.
_RULES = (
    dlight.gpu.Transpose(),
    dlight.gpu.Matmul(),
    dlight.gpu.GEMV(),
    dlight.gpu.Reduction(),
    dlight.gpu.GeneralReduction(),
)


class ScheduleGpuDefaults:
    """Bind the loops of every function to blocks and threads.

    TVM's general rules (dlight) are asked first. They decline some functions and fail an assertion
    on others, above all on what follows a tiled product; those get a schedule that always works:
    elementwise stages inlined, the outputs of each stage shared between threads, reductions
    sequential within a thread.

    Functions marked ``tbn.scheduled`` or ``tirx.is_scheduled`` are left as they are. Afterwards
    every function carries the latter mark, so that TVM's own pipelines leave them alone, too.

    Parameters
    ----------
    target : tvm.target.Target
        A GPU.
    """

    def __new__(cls, target: tvm.target.Target) -> tvm.transform.Pass:
        @tvm.transform.module_pass(opt_level=0, name="ScheduleGpuDefaults")
        def schedule(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
            for name, func in mod.functions_items():
                if isinstance(func, tir.PrimFunc):
                    mod[name] = _scheduled(func, target, name.name_hint)
            return mod

        return schedule


def is_thread_bound(func: tir.PrimFunc) -> bool:
    """Whether everything a function of schedulable blocks computes runs in GPU threads."""
    unbound = []

    def visit(stmt, bound: bool) -> None:
        if isinstance(stmt, tir.For):
            visit(stmt.body, bound or stmt.kind == tir.ForKind.THREAD_BINDING)
        elif isinstance(stmt, tir.AttrStmt):
            visit(stmt.body, bound or stmt.attr_key == "thread_extent")
        elif isinstance(stmt, tir.SeqStmt):
            for part in stmt.seq:
                visit(part, bound)
        elif isinstance(stmt, tir.IfThenElse):
            visit(stmt.then_case, bound)
            if stmt.else_case is not None:
                visit(stmt.else_case, bound)
        elif isinstance(stmt, s_tir.SBlockRealize):
            if stmt.block.init is not None:
                visit(stmt.block.init, bound)
            visit(stmt.block.body, bound)
        elif hasattr(stmt, "body"):
            visit(stmt.body, bound)
        elif isinstance(stmt, tir.BufferStore) and not bound:
            unbound.append(stmt)

    visit(func.body, False)
    return not unbound


def _scheduled(func: tir.PrimFunc, target: tvm.target.Target, name: str) -> tir.PrimFunc:
    # What TVM writes for a GPU (sorting, scattering) comes bound, and unmarked.
    if SCHEDULED in func.attrs or func.attrs.get(_TVM_SCHEDULED) or is_thread_bound(func):
        return func.with_attr(_TVM_SCHEDULED, True)
    # A product with a bit-packed operand looks like a matrix product and is none to these rules.
    made = None if _has_tiled_product(func) else _by_rules(func, target)
    if made is None:
        try:
            made = _by_default(func, target)
        except s_tir.ScheduleError:
            made = func
    if not is_thread_bound(made):
        raise ValueError(f"kernel {name!r} cannot be scheduled for {target.kind.name}")
    return made.with_attr(_TVM_SCHEDULED, True)


def _has_tiled_product(func: tir.PrimFunc) -> bool:
    if TILED_PRODUCT in func.attrs:
        return True
    # A symbolic extent may be a parameter, too.
    buffers = [param for param in func.params if isinstance(param.ty, tir.BufferType)]
    return any(buffer.dtype == "uint8" and len(buffer.shape) == 1 for buffer in buffers)


def _by_rules(func: tir.PrimFunc, target: tvm.target.Target) -> tir.PrimFunc | None:
    for rule in _RULES:
        try:
            sch = rule.apply(func, target, False)
        except Exception:  # assertions, schedule errors, attribute errors: each means "not mine"
            continue
        if sch is None:
            continue
        made = (sch if isinstance(sch, s_tir.Schedule) else sch[0]).mod["main"]
        if is_thread_bound(made):
            return _with_attrs_of(func, made)
    return None


def _by_default(func: tir.PrimFunc, target: tvm.target.Target) -> tir.PrimFunc:
    sch = s_tir.Schedule(tvm.IRModule({"main": func}))
    root = sch.get_sblock("root")
    _inline(sch, root)
    threads = min(THREADS, int(target.attrs.get("max_num_threads", THREADS)))
    for block in sch.get_child_blocks(root):
        loops = sch.get_loops(block)
        if _runs_in_threads(sch.get(loops[0]) if loops else sch.get(block).body):
            continue
        spatial, others = [], []
        kinds = [int(var.iter_type) for var in sch.get(block).iter_vars]
        if len(kinds) != len(loops):
            others = loops  # loops are not the block's axes: their order is kept, in one thread
        else:
            for loop, kind in zip(loops, kinds, strict=True):
                (spatial if kind == tir.IterVar.DataPar else others).append(loop)
        if not spatial:
            spatial = [sch.add_unit_loop(loops[0] if loops else block)]
        elif others:
            sch.reorder(*spatial, *others)
        outer, inner = sch.split(sch.fuse(*spatial), factors=[None, threads])
        sch.bind(outer, "blockIdx.x")
        sch.bind(inner, "threadIdx.x")
        if sch.get(block).init is not None and others:
            sch.decompose_reduction(block, others[0])
    return _with_attrs_of(func, sch.mod["main"])


def _runs_in_threads(stmt: tir.Stmt) -> bool:
    """Whether there are threads anywhere inside a statement: there cannot be more around it."""
    found = []

    def attribute(node: tir.AttrStmt) -> None:
        found.append(node.attr_key in ("thread_extent", "virtual_thread"))

    def loop(node: tir.For) -> None:
        found.append(node.kind == tir.ForKind.THREAD_BINDING)

    tvm_ffi.structural_walk(stmt, [(tir.AttrStmt, attribute), (tir.For, loop)], order="post")
    return any(found)


def _inline(sch: s_tir.Schedule, root) -> None:
    """Inline what is elementwise into what reads it, else into what it reads."""
    for block in sch.get_child_blocks(root):
        if sch.get(block).init is not None or not sch.get_consumers(block):
            continue
        try:
            sch.compute_inline(block)
        except s_tir.ScheduleError:
            continue  # keeps its buffer


def _with_attrs_of(func: tir.PrimFunc, made: tir.PrimFunc) -> tir.PrimFunc:
    return made.with_attrs(func.attrs) if func.attrs else made
