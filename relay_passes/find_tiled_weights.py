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
    of the weight is an output feature either way; a stack of one matrix counts as that), and the
    weights of ``nn.conv1d`` and ``nn.conv2d`` in the layouts NCW and NCHW. A constant is replaced
    where a tile reproduces it up to float rounding and takes fewer bytes than a quarter of the
    dense constant.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return rewrite_functions(mod, _Finder(mod))


def find_tiling(dense: np.ndarray) -> TiledTensor | None:
    """The most compact exact tiling of a weight, or None where it is not worth having.

    Parameters
    ----------
    dense : numpy.ndarray
        Shape ``(m, ...)``. Weights in float16 or bfloat16 are compared as stored: alphas that
        differ there stay apart.
    """
    return explain_tiling(dense)[0]


def explain_tiling(dense: np.ndarray) -> tuple[TiledTensor | None, str]:
    """As :func:`find_tiling`, with a sentence on why a weight is not tiled, empty where it is."""
    if str(dense.dtype) not in ("float16", "bfloat16", "float32", "float64"):
        return None, f"weights of {dense.dtype} are not tiled"
    if dense.ndim == 0 or dense.size == 0:
        return None, "it is empty or a scalar"
    # Every 16-bit float is a float32, whose tolerance is finer than one of its steps.
    wide = dense.astype(np.float32) if dense.itemsize == 2 else dense
    if not np.isfinite(wide).all():
        return None, "it has weights that are infinite or no number"
    tiled = TiledTensor.from_dense(wide, minimise="bytes")
    # Any one-signed array is "tiled" with one alpha an element: that would save nothing.
    if tiled is None:
        return None, _why_not(wide)
    if 4 * tiled.nbytes > dense.nbytes:
        return None, (
            f"a tile of {tiled.q} bits repeats, but would take {tiled.nbytes} of {dense.nbytes} "
            "bytes, and less than a quarter is expected"
        )
    return tiled, ""


def _why_not(dense: np.ndarray) -> str:
    magnitudes = np.unique(np.abs(dense))
    if magnitudes.size > dense.size // 4:
        return "its weights are of many magnitudes: an ordinary float weight"
    return f"its weights are of {magnitudes.size} magnitudes, but no tile of signs repeats"


def _as_matrix(dense: np.ndarray, x: relax.Expr) -> np.ndarray | None:
    """A stack of one matrix as that, where the product's rank does not come from the stack."""
    if any(extent != 1 for extent in dense.shape[:-2]) or x.ty.ndim < dense.ndim:
        return None
    return dense.reshape(dense.shape[-2:])


@mutator
class _Finder(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if is_call(call, "relax.matmul"):
            weight = self._matmul_weight(*call.args)
        elif isinstance(call.op, tvm.ir.Op) and call.op.name in _CONVOLUTIONS:
            weight = self._conv_weight(call)
        else:
            return call
        if weight is None:
            return call
        return relax.Call(call.op, [call.args[0], weight], call.attrs, call.ty_args, call.span)

    def _matmul_weight(self, x: relax.Expr, operand: relax.Expr) -> relax.Expr | None:
        value = self.lookup_binding(operand) if isinstance(operand, relax.Var) else operand
        if is_call(value, "relax.permute_dims"):
            dense = constant_array(self._resolve(value.args[0]))
        else:
            dense = constant_array(value)
            if dense is not None and dense.ndim > 2:
                dense = _as_matrix(dense, x)
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
        if str(dense.dtype) != "float32":
            weight = self.builder_.emit(relax.op.astype(weight, str(dense.dtype)))
        return weight

    def _resolve(self, expr: relax.Expr) -> relax.Expr | None:
        return self.lookup_binding(expr) if isinstance(expr, relax.Var) else expr
