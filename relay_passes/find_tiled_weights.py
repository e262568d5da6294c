"""Find dense constants that are tiled, whoever trained them."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from tbn_tvm import op
from tbn_tvm.relay_passes._match import constant_array, is_call, rewrite_functions
from tbn_tvm.tiling import TiledTensor

_CONVOLUTIONS = {
    "relax.nn.conv1d": ("NCW", "OIW"),
    "relax.nn.conv2d": ("NCHW", "OIHW"),
}


@tvm.transform.module_pass(opt_level=0, name="FindTiledWeights")
class FindTiledWeights:
    """Replace tiled float constants under matmul and convolution by ``R.tbn.tiled_weight``.

    Looked at: the second operand of ``matmul``, as it is or behind one ``permute_dims`` (a row
    of the weight is an output feature either way), and the weights of ``nn.conv1d`` and
    ``nn.conv2d`` in the layouts NCW and NCHW. A constant is replaced where a tile reproduces it
    up to float rounding and takes fewer bytes than a quarter of the dense constant.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return rewrite_functions(mod, _Finder(mod))


def find_tiling(dense: np.ndarray) -> TiledTensor | None:
    """The most compact exact tiling of a weight, or None where it is not worth having."""
    if dense.dtype not in (np.float16, np.float32, np.float64):
        return None
    tiled = TiledTensor.from_dense(dense, minimise="bytes")
    # Any one-signed array is "tiled" with one alpha an element: that would save nothing.
    return tiled if tiled is not None and 4 * tiled.nbytes <= dense.nbytes else None


@mutator
class _Finder(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if is_call(call, "relax.matmul"):
            weight = self._matmul_weight(call.args[1])
        elif isinstance(call.op, tvm.ir.Op) and call.op.name in _CONVOLUTIONS:
            weight = self._conv_weight(call)
        else:
            return call
        if weight is None:
            return call
        return relax.Call(call.op, [call.args[0], weight], call.attrs, call.ty_args, call.span)

    def _matmul_weight(self, operand: relax.Expr) -> relax.Expr | None:
        value = self.lookup_binding(operand) if isinstance(operand, relax.Var) else operand
        if is_call(value, "relax.permute_dims"):
            dense = constant_array(self._resolve(value.args[0]))
        else:
            dense = constant_array(value)
            dense = dense.T if dense is not None else None
        if dense is None or dense.ndim != 2:
            return None
        weight = self._emit_weight(np.ascontiguousarray(dense))
        return None if weight is None else self.builder_.emit(relax.op.permute_dims(weight))

    def _conv_weight(self, call: relax.Call) -> relax.Expr | None:
        dense = constant_array(self._resolve(call.args[1]))
        layouts = (str(call.attrs.data_layout), str(call.attrs.kernel_layout))
        if dense is None or layouts != _CONVOLUTIONS[call.op.name]:
            return None
        return self._emit_weight(dense)

    def _emit_weight(self, dense: np.ndarray) -> relax.Var | None:
        tiled = find_tiling(dense)
        if tiled is None:
            return None
        weight = self.builder_.emit(
            op.tiled_weight(
                relax.const(tiled.tile), relax.const(tiled.alphas), shape=tiled.shape, p=tiled.p
            )
        )
        if dense.dtype != np.float32:
            weight = self.builder_.emit(relax.op.astype(weight, str(dense.dtype)))
        return weight

    def _resolve(self, expr: relax.Expr) -> relax.Expr | None:
        return self.lookup_binding(expr) if isinstance(expr, relax.Var) else expr
