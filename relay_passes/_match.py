"""Small questions that several passes ask of a Relax function."""

from __future__ import annotations

from collections import Counter

import numpy as np
import tvm
from tvm import relax


def is_call(expr: relax.Expr | None, name: str) -> bool:
    """Whether an expression is a call of the operator of this name."""
    return isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op) and expr.op.name == name


def constant_array(expr: relax.Expr | None) -> np.ndarray | None:
    """The value of a constant, or None where the expression is none."""
    return expr.value.numpy() if isinstance(expr, tvm.ir.GenericConst) else None


def rewrite_functions(mod: tvm.IRModule, mutator) -> tvm.IRModule:
    """The module with each of its graph functions visited by a mutator made for it."""
    for name, func in mod.functions_items():
        if isinstance(func, relax.Function):
            mutator.builder_.update_func(name, mutator.visit_expr(func))
    return mutator.builder_.get()


def use_counts(func: relax.Function) -> Counter:
    """How often each variable of a function is used, by variable."""
    uses: Counter = Counter()

    def visit(expr):
        # Tuple fields and call arguments are uses; a binding's own left side is not visited.
        if isinstance(expr, relax.Call):
            uses.update(arg for arg in expr.args if isinstance(arg, relax.Var))
        elif isinstance(expr, relax.Tuple):
            uses.update(field for field in expr.fields if isinstance(field, relax.Var))
        elif isinstance(expr, relax.TupleGetItem) and isinstance(expr.tuple_value, relax.Var):
            uses[expr.tuple_value] += 1
        elif isinstance(expr, relax.SeqExpr) and isinstance(expr.body, relax.Var):
            uses[expr.body] += 1

    relax.analysis.post_order_visit(func.body, visit)
    for block in func.body.blocks:
        for binding in block.bindings:
            if isinstance(binding, relax.VarBinding) and isinstance(binding.value, relax.Var):
                uses[binding.value] += 1
    return uses


def per_channel(array: np.ndarray, rank: int, axis: int, channels: int) -> np.ndarray | None:
    """The vector that a constant adds along one axis of a tensor, or None.

    Parameters
    ----------
    array : numpy.ndarray
        Broadcast against a tensor of ``rank`` axes.
    rank, axis : int
        The tensor's rank and the axis of its channels.
    channels : int
        Extent of that axis.

    Returns
    -------
    numpy.ndarray or None
        Shape ``(channels,)``; None where the constant varies along another axis.
    """
    if array.ndim > rank:
        return None
    full = array.reshape((1,) * (rank - array.ndim) + array.shape)
    if any(extent != 1 for at, extent in enumerate(full.shape) if at != axis):
        return None
    if full.shape[axis] not in (1, channels):
        return None
    return np.broadcast_to(full.reshape(-1), (channels,)).copy()
