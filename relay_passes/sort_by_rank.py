"""Sorts as loops, for targets without TVM's run-time library, which has the routines otherwise."""

from __future__ import annotations

import tvm
from tvm import relax, te
from tvm import tirx as tir
from tvm.relax.expr_functor import PyExprMutator, mutator

from tbn_tvm.relay_passes._match import rewrite_functions


@tvm.transform.module_pass(opt_level=0, name="SortByRank")
class SortByRank:
    """Lower ``sort``, ``argsort`` and ``topk`` to loops that count.

    An element's rank is the number of elements that go before it; of equal ones, the first goes
    first, and NaN counts as the greatest. That takes the square of the axis's extent in
    comparisons, needs one array of ranks and no recursion: what a board's few hundred scores want.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return rewrite_functions(mod, _Sorter(mod))


@mutator
class _Sorter(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        name = call.op.name if isinstance(call.op, tvm.ir.Op) else ""
        if name not in ("relax.sort", "relax.argsort", "relax.topk"):
            return call
        (x,), attrs = call.args, call.attrs
        rank = len(x.ty.shape.values)
        axis = int(attrs.axis) % rank
        extent = x.ty.shape.values[axis]
        if name == "relax.topk":
            wanted, descending, kept = attrs.ret_type, bool(attrs.largest), attrs.k
            # TVM takes any number below 1 for all.
            if isinstance(kept, tir.IntImm) and int(kept) < 1:
                kept = extent
        else:
            wanted = "values" if name == "relax.sort" else "indices"
            descending, kept = bool(attrs.descending), extent
        dtype = "int32" if name == "relax.sort" else str(attrs.dtype)
        return self.builder_.call_te(
            _sorted, x, axis, kept, descending, dtype, wanted, primfunc_name_hint=name[6:]
        )


def _sorted(x: te.Tensor, axis: int, kept, descending: bool, dtype: str, wanted: str):
    """The first elements of each row along an axis once sorted, their indices, or both."""
    extent = x.shape[axis]
    shape = [*x.shape[:axis], kept, *x.shape[axis + 1 :]]

    def at(place, along):
        return (*place[:axis], along, *place[axis + 1 :])

    def rank(*place):
        other = te.reduce_axis((0, extent), "other")
        a, b = x[at(place, other)], x[place]
        first, second = (b, a) if descending else (a, b)
        before = tir.any(_less(first, second), tir.all(_equal(a, b), other < place[axis]))
        return te.sum(before.astype("int32"), axis=other)

    ranks = te.compute(x.shape, rank, "ranks")

    def index(*place):
        source = te.reduce_axis((0, extent), "source")
        here = ranks[at(place, source)] == place[axis].astype("int32")
        return te.sum(tir.if_then_else(here, source, 0).astype(dtype), axis=source)

    indices = te.compute(shape, index, "indices")
    if wanted == "indices":
        return indices
    values = te.compute(shape, lambda *place: x[at(place, indices[place])], "values")
    return values if wanted == "values" else [values, indices]


# Said without the negation of a comparison, which TVM turns around as if there were no NaN.
def _less(a, b):
    if "float" not in str(a.dtype):
        return a < b
    return tir.any(a < b, tir.all(tir.isnan(b), tir.Not(tir.isnan(a))))


def _equal(a, b):
    if "float" not in str(a.dtype):
        return a == b
    return tir.any(a == b, tir.all(tir.isnan(a), tir.isnan(b)))
