"""Keep out of a product's kernel what has another shape than its outputs."""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import relax
from tvm import tirx as tir

from tbn_tvm.schedules.reference import TILED_PRODUCT

_PATTERN = "op_pattern"
_BROADCAST, _INJECTIVE, _OUT_FUSABLE = 1, 2, 4
"""Of relax's ``OpPatternKind``."""


class FuseSameShapes:
    """Correct operator patterns behind products whose kernels write outputs.

    ``AnnotateTIROpPattern`` looks at indices alone. A slice from the start, padding at the end and
    the sum of a product with something larger read a product's outputs where they write, or
    broadcast them, and would be fused: but the kernel writes its own outputs, neither fewer nor
    more. They become injective, which nothing is fused with across a product.

    Runs after ``AnnotateTIROpPattern`` and before ``FuseOps``.
    """

    def __new__(cls) -> tvm.transform.Pass:
        @tvm.transform.module_pass(opt_level=0, name="FuseSameShapes")
        def correct(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
            wrong = {
                name
                for _, func in mod.functions_items()
                if isinstance(func, relax.Function)
                for name in _changing_shape(func, mod)
            }
            for name in wrong:
                mod[name] = mod[name].with_attr(_PATTERN, _INJECTIVE)
            return mod

        return correct


def _changing_shape(func: relax.Function, mod: tvm.IRModule) -> set[tvm.ir.GlobalVar]:
    """Functions that a product would be fused with though their output has another shape."""
    found, fused = set(), set()
    if not isinstance(func.body, relax.SeqExpr):
        return found
    for block in func.body.blocks:
        for binding in block.bindings:
            call = getattr(binding, "value", None)
            if not isinstance(call, relax.Call) or not _is_call_tir(call):
                continue
            callee = mod[call.args[0]]
            attrs = callee.attrs if isinstance(callee, tir.PrimFunc) else {}
            pattern = int(attrs[_PATTERN]) if _PATTERN in attrs else None
            if TILED_PRODUCT in attrs and pattern == _OUT_FUSABLE:
                fused.add(binding.var)
                continue
            read = [arg for arg in call.args[1].fields if arg in fused]
            if pattern is None or pattern > _BROADCAST or not read:
                continue
            if all(_same_shape(arg, binding.var) for arg in read):
                fused.add(binding.var)
            else:
                found.add(call.args[0])
    return found


def _is_call_tir(call: relax.Call) -> bool:
    return isinstance(call.op, tvm.ir.Op) and call.op.name == "relax.call_tir"


def _same_shape(a: relax.Var, b: relax.Var) -> bool:
    if not isinstance(b.ty, relax.TensorType):
        return False
    return tvm_ffi.structural_equal(a.ty.shape, b.ty.shape)
