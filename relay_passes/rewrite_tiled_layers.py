"""Turn products with a tiled weight into the tile-reuse operator."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from tbn_tvm import op
from tbn_tvm.relay_passes._match import is_call, rewrite_functions

_CONVOLUTIONS = {"relax.nn.conv1d": op.tiled_conv1d, "relax.nn.conv2d": op.tiled_conv2d}


@tvm.transform.module_pass(opt_level=0, name="RewriteTiledLayers")
class RewriteTiledLayers:
    """Rewrite ``matmul``, ``nn.conv1d`` and ``nn.conv2d`` over ``R.tbn.tiled_weight``.

    ``matmul(x, permute_dims(tiled_weight))`` becomes ``tiled_dense``, a convolution with a
    tiled weight becomes ``tiled_conv1d`` or ``tiled_conv2d``. The weight expression itself is
    left to dead-code elimination.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return relax.transform.DeadCodeElimination()(rewrite_functions(mod, _Rewriter(mod)))


@mutator
class _Rewriter(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if is_call(call, "relax.matmul"):
            transposed = self._resolve(call.args[1])
            if not is_call(transposed, "relax.permute_dims"):
                return call
            weight = self._tiled_weight(transposed.args[0])
            if weight is None or call.args[0].ty.ndim < 1:
                return call
            shape, p = op.attributes(weight)["shape"], op.attributes(weight)["p"]
            return op.tiled_dense(call.args[0], *weight.args, out_features=shape[0], p=p)
        if isinstance(call.op, tvm.ir.Op) and call.op.name in _CONVOLUTIONS:
            weight = self._tiled_weight(call.args[1])
            if weight is None:
                return call
            shape, p = op.attributes(weight)["shape"], op.attributes(weight)["p"]
            return _CONVOLUTIONS[call.op.name](
                call.args[0],
                *weight.args,
                out_channels=shape[0],
                p=p,
                kernel_size=shape[2:],
                strides=[int(step) for step in call.attrs.strides],
                padding=[int(pad) for pad in call.attrs.padding],
                dilation=[int(step) for step in call.attrs.dilation],
                groups=int(call.attrs.groups),
            )
        return call

    def _tiled_weight(self, expr: relax.Expr) -> relax.Call | None:
        value = self._resolve(expr)
        if is_call(value, "relax.astype"):
            value = self._resolve(value.args[0])
        return value if is_call(value, op.TILED_WEIGHT) else None

    def _resolve(self, expr: relax.Expr) -> relax.Expr | None:
        return self.lookup_binding(expr) if isinstance(expr, relax.Var) else expr
