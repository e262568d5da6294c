"""Which kernels a lowered module uses, and who chose their configurations."""

from __future__ import annotations

import json

import tvm
from tvm import relax
from tvm import tirx as tir

from tbn_tvm.schedules.kernel import KERNEL_ATTR


def used_kernels(mod: tvm.IRModule) -> list[dict]:
    """The chosen kernels in the order in which ``main`` calls them.

    Parameters
    ----------
    mod : tvm.IRModule
        After lowering, planned or not. Products of the reference kernel are not listed.

    Returns
    -------
    list of dict
        ``function`` (its name), ``kernel``, ``version``, ``configs`` (one a regime), ``sources``
        (``rules``, ``shipped`` or ``user`` and a file, one a regime), ``input`` (the shape of
        the activations; symbolic extents as text).
    """
    notes = {
        var: json.loads(str(func.attrs[KERNEL_ATTR]))
        for var, func in mod.functions_items()
        if isinstance(func, tir.PrimFunc) and func.attrs and KERNEL_ATTR in func.attrs
    }
    rows = []

    def visit(expr) -> None:
        if not isinstance(expr, relax.Call):
            return
        callee, args = expr.op, list(expr.args)
        if isinstance(callee, tvm.ir.Op) and callee.name.startswith("relax.call_tir"):
            callee, args = args[0], list(args[1].fields)
        if isinstance(callee, tvm.ir.GlobalVar) and callee in notes:
            row = {"function": callee.name_hint, **notes[callee]}
            shape = getattr(args[0].ty, "shape", None) if args else None
            row["input"] = [] if shape is None else [_extent(extent) for extent in shape.values]
            rows.append(row)

    relax.analysis.post_order_visit(mod["main"], visit)
    return rows


def _extent(value) -> int | str:
    return int(value) if isinstance(value, (int, tir.IntImm)) else str(value)
