"""Take the bias that follows a tiled product into the product."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from tbn_tvm import op
from tbn_tvm.relay_passes._match import constant_array, is_call, per_channel, use_counts


@tvm.transform.module_pass(opt_level=0, name="FuseBias")
class FuseBias:
    """Rewrite ``tiled_product(x) + c`` to ``tiled_product(x, bias=c)``.

    Where ``c`` is a constant that varies along the output channels only, and nothing else uses
    the product. The operands of the addition may stand in either order.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return relax.transform.DeadCodeElimination()(_Fuser(mod).transform())


@mutator
class _Fuser(PyExprMutator):
    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self.mod = mod

    def transform(self) -> tvm.IRModule:
        for name, func in self.mod.functions_items():
            if isinstance(func, relax.Function):
                self._uses = use_counts(func)
                self.builder_.update_func(name, self.visit_expr(func))
        return self.builder_.get()

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        uses = [self._uses[arg] if isinstance(arg, relax.Var) else 0 for arg in call.args]
        call = self.visit_expr_post_order(call)
        if not is_call(call, "relax.add"):
            return call
        for (value, times), other in (
            ((call.args[0], uses[0]), call.args[1]),
            ((call.args[1], uses[1]), call.args[0]),
        ):
            product = self.lookup_binding(value) if isinstance(value, relax.Var) else None
            addend = constant_array(self._constant(other))
            if times != 1 or addend is None or not op.is_product(product):
                continue
            rank = value.ty.ndim
            axis = rank - 1 if product.op.name == op.TILED_DENSE else 1
            bias = per_channel(addend, rank, axis, op.output_rows(product))
            if bias is None or addend.ndim > rank:
                continue
            if len(product.args) == 4:
                present = constant_array(product.args[3])
                if present is None:
                    continue
                bias = bias + present
            args = [*product.args[:3], relax.const(bias.astype(addend.dtype))]
            return relax.Call(product.op, args, product.attrs)
        return call

    def _constant(self, expr: relax.Expr) -> relax.Expr | None:
        """The constant behind an expression; frontends reshape biases to broadcast them."""
        value = self.lookup_binding(expr) if isinstance(expr, relax.Var) else expr
        if is_call(value, "relax.reshape"):
            inner = constant_array(value.args[0])
            if inner is None:
                return None
            # The shape of a reshaped constant is made of numbers.
            return relax.const(inner.reshape([int(extent) for extent in value.ty.shape.values]))
        return value
