"""Replace stand-ins, with what TVM fused into them, by the kernels they stand for."""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import s_tir
from tvm import tirx as tir

from tbn_tvm.schedules.families import family_of
from tbn_tvm.schedules.fused import Operands, annotated, is_stand_in, read_plan
from tbn_tvm.schedules.rules import Workload


class BuildFusedKernels:
    """Instantiate the template of each stand-in that ``LowerTiledProducts`` left.

    Runs after ``FuseTIR``: what was fused behind a product is computed where the kernel stores
    its outputs, in the same launch.

    Parameters
    ----------
    target : tvm.target.Target
        The one that ``LowerTiledProducts`` had.
    """

    def __new__(cls, target: tvm.target.Target) -> tvm.transform.Pass:
        family = family_of(target)

        @tvm.transform.module_pass(opt_level=0, name="BuildFusedKernels")
        def build(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
            for name, func in mod.functions_items():
                if isinstance(func, tir.PrimFunc):
                    built = _built(func, family)
                    if built is not None:
                        mod[name] = built
            return mod

        return build


def _built(func: tir.PrimFunc, family) -> tir.PrimFunc | None:
    """The kernel for a function with a stand-in; None for any other function."""
    if not any(is_stand_in(_value(block)) for block in _leaf_blocks(func)):
        return None
    block = _one_block(func)
    value, iters = _value(block), [var.var for var in block.iter_vars]
    calls = [call for call in _calls(value) if is_stand_in(call)]
    plan = read_plan(calls[0])
    workload = Workload.from_dict(plan["workload"], family.features)
    kernel = family.kernels[plan["kernel"]]
    reads = [arg.source for arg in calls[0].args[2 : 2 + plan["reads"]]]
    x, words, alpha = reads[:3]
    _check_places(calls, iters, plan["reads"], _written(block), x, workload)

    def finish(result, indices):
        at = dict(zip(iters, indices, strict=True))

        def replaced(expr):
            if is_stand_in(expr):
                return result.astype(workload.dtype)
            if isinstance(expr, tvm.ir.TensorLoad):
                # Indices themselves may stay in 32 bits, which are fewer instructions.
                whole = [at[i] if i in at else rewritten(i, replaced) for i in expr.indices]
                return tir.BufferLoad(expr.source, whole)
            if isinstance(expr, tir.Var) and expr in at:
                return tir.Cast(str(expr.ty.dtype), at[expr])
            return None

        return rewritten(value, replaced)

    io = Operands(x, words, alpha, reads[3] if len(reads) == 4 else None, _written(block), finish)
    built = kernel.build(list(func.params), io, workload, tuple(plan["configs"]))
    return annotated(built, kernel, plan["configs"], plan["sources"])


def _check_places(calls, iters, reads: int, y, x, workload: Workload) -> None:
    """Refuse what is computed elsewhere than where the product's outputs lie."""
    places = [list(call.args[2 + reads :]) for call in calls]
    own = [*x.shape[:-1]] if workload.is_dense else [x.shape[0]]
    own += [workload.product.geometry.m, *([] if workload.is_dense else y.shape[2:])]
    same_shape = len(own) == len(y.shape) and all(
        tvm_ffi.structural_equal(tir.const(a, "int64") if isinstance(a, int) else a, b)
        for a, b in zip(own, y.shape, strict=True)
    )
    if not same_shape or any(
        len(place) != len(iters) or not all(map(tir.Var.same_as, place, iters)) for place in places
    ):
        raise ValueError(
            f"{workload.operator} with outputs of shape {own} is fused with what stores shape "
            f"{list(y.shape)}: run FuseSameShapes before FuseOps"
        )


def _one_block(func: tir.PrimFunc):
    """The function's blocks inlined into the one that writes its output."""
    sch = s_tir.Schedule(tvm.IRModule({"main": func}))
    root = sch.get_sblock("root")
    *inner, last = sch.get_child_blocks(root)
    for block in inner:
        sch.compute_inline(block)
    return sch.get(last)


def _leaf_blocks(func: tir.PrimFunc):
    sch = s_tir.Schedule(tvm.IRModule({"main": func}))
    try:
        root = sch.get_sblock("root")
    except Exception:  # a function without blocks is nobody's stand-in
        return []
    return [sch.get(block) for block in sch.get_child_blocks(root)]


def _value(block):
    return block.body.value if isinstance(block.body, tir.BufferStore) else None


def _written(block):
    return block.body.buffer


def _calls(expr) -> list:
    found = []

    def visit(node):
        if isinstance(node, tvm.ir.Call):
            found.append(node)

    rewritten(expr, visit)
    return found


_BINARY = (
    tir.Add, tir.Sub, tir.Mul, tir.Div, tir.Mod, tir.FloorDiv, tir.FloorMod, tir.Min, tir.Max,
    tir.EQ, tir.NE, tir.LT, tir.LE, tir.GT, tir.GE, tir.And, tir.Or,
    tir.BitwiseAnd, tir.BitwiseOr, tir.BitwiseXor, tir.LShift, tir.RShift,
)  # fmt: skip


def rewritten(expr, replace):
    """An elementwise expression with parts replaced.

    Parameters
    ----------
    expr : tvm.ir.Expr
        What a block stores.
    replace : callable
        Called with each part, outermost first; returns its replacement or None to go on inside.

    Raises
    ------
    ValueError
        For a kind of expression that elementwise blocks do not have.
    """
    new = replace(expr)
    if new is not None:
        return new

    def inside(part):
        return rewritten(part, replace)

    if isinstance(expr, _BINARY):
        return type(expr)(inside(expr.a), inside(expr.b))
    if isinstance(expr, tir.Cast):
        return tir.Cast(str(expr.ty.dtype), inside(expr.value))
    if isinstance(expr, (tir.Not, tir.BitwiseNot)):
        return type(expr)(inside(expr.a))
    if isinstance(expr, tir.Select):
        parts = expr.condition, expr.true_value, expr.false_value
        return tir.Select(*map(inside, parts))
    if isinstance(expr, tvm.ir.TensorLoad):
        return tir.BufferLoad(expr.source, [inside(index) for index in expr.indices])
    if isinstance(expr, tvm.ir.Call):
        args = [arg if isinstance(arg, tvm.ir.StringImm) else inside(arg) for arg in expr.args]
        return tvm.ir.Call(expr.op, args, expr.attrs, ret_ty=expr.ty)
    if isinstance(expr, (tir.IntImm, tir.FloatImm, tir.Var)):
        return expr
    raise ValueError(f"an elementwise block stores {type(expr).__name__}: {expr}")
