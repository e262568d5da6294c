"""Let the memory planner see the scratch memory of kernels."""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import relax, s_tir
from tvm import tirx as tir
from tvm.relax.expr_functor import PyExprMutator, mutator

from tbn_tvm.relay_passes._match import is_call, rewrite_functions


@tvm.transform.module_pass(opt_level=0, name="LiftWorkspaces")
class LiftWorkspaces:
    """Make global buffers that a kernel allocates for itself outputs that nobody reads.

    A kernel of two launches hands its intermediate result over in global memory. Allocated inside,
    it comes from the device's own pool at each call, which no plan counts and which a captured CUDA
    graph must not touch; as an output it shares the planned storage of activations.

    Runs on ``call_tir`` calls of scheduled functions.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        lifted = {}
        for name, func in mod.functions_items():
            scratch = _scratch(func) if isinstance(func, tir.PrimFunc) else []
            if scratch:
                lifted[name] = scratch
        if not lifted:
            return mod
        mod = rewrite_functions(mod, _Caller(mod, lifted))
        return tvm.IRModule(
            {name: func for name, func in mod.functions_items() if name not in lifted},
            attrs=mod.attrs,
        )


def _scratch(func: tir.PrimFunc) -> list[tir.Buffer]:
    if not isinstance(func.body, s_tir.SBlockRealize):
        return []
    return [buffer for buffer in func.body.block.alloc_buffers if buffer.scope() == "global"]


def _without_scratch(func: tir.PrimFunc, scratch: list[tir.Buffer]) -> tir.PrimFunc:
    root = func.body.block
    kept = [buffer for buffer in root.alloc_buffers if buffer.scope() != "global"]
    body = s_tir.SBlockRealize(
        [],
        True,
        s_tir.SBlock(
            root.iter_vars,
            root.reads,
            root.writes,
            root.name_hint,
            root.body,
            root.init,
            kept,
            root.match_buffers,
            root.annotations,
        ),
    )
    buffers = [param for param in func.params if _is_buffer(param)]
    extents = [param for param in func.params if not _is_buffer(param)]
    return tir.PrimFunc([*buffers, *scratch, *extents], body, func.ret_type, func.attrs)


@mutator
class _Caller(PyExprMutator):
    def __init__(self, mod: tvm.IRModule, lifted: dict) -> None:
        super().__init__(mod)
        self._mod, self._lifted = mod, lifted
        # A function of another signature is another function: one for each that is lifted.
        self._made: dict[tvm.ir.GlobalVar, tvm.ir.GlobalVar] = {}

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if not is_call(call, "relax.call_tir") or call.args[0] not in self._lifted:
            return call
        name, arguments = call.args[:2]
        (given,) = call.ty_args
        outputs = list(given.fields) if isinstance(given, relax.TupleType) else [given]
        values = self._extents(self._mod[name], arguments.fields, outputs, call.args[2:])
        scratch = [
            relax.TensorType([_substituted(e, values) for e in buffer.shape], buffer.dtype)
            for buffer in self._lifted[name]
        ]
        if name not in self._made:
            made = _without_scratch(self._mod[name], self._lifted[name])
            self._made[name] = self.builder_.add_func(made, name.name_hint)
        types = [*outputs, *scratch]
        result = self.builder_.emit(
            relax.call_tir(self._made[name], arguments, types, *call.args[2:])
        )
        fields = [relax.TupleGetItem(result, index) for index in range(len(outputs))]
        return relax.Tuple(fields) if isinstance(given, relax.TupleType) else fields[0]

    def _extents(self, func: tir.PrimFunc, arguments, outputs, tir_vars) -> dict:
        """What the function's symbolic extents are in terms of the caller's."""
        buffers = [param for param in func.params if _is_buffer(param)]
        types = [*(argument.ty for argument in arguments), *outputs]
        values = {}
        for buffer, tensor in zip(buffers, types, strict=True):
            for inner, outer in zip(buffer.shape, tensor.shape.values, strict=True):
                if isinstance(inner, tir.Var):
                    values.setdefault(inner, outer)
        scalars = [param for param in func.params if not _is_buffer(param)]
        if tir_vars:
            values.update(zip(scalars, tir_vars[0].values, strict=True))
        return values


def _substituted(extent, values: dict):
    return tvm_ffi.structural_map(extent, [(tir.Var, lambda var: values.get(var, var))])


def _is_buffer(param: tir.Var) -> bool:
    return isinstance(param.ty, tir.BufferType)
