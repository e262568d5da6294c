"""Fold an inference batch norm into the alphas and bias of the tiled product before it."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from tbn_tvm import op
from tbn_tvm.relay_passes._match import constant_array, is_call, use_counts
from tbn_tvm.schedules.reference import AlphaLayout, Product


@tvm.transform.module_pass(opt_level=0, name="FoldBatchNorm")
class FoldBatchNorm:
    """Rewrite ``batch_norm(tiled_product(x))[0]`` to a tiled product with other scalars.

    Batch norm gives every output channel a scale of its own, so the folded product no longer has
    one alpha a tile: it has one an output channel (``m`` floats in place of ``p``) or, where
    alpha also changes inside a row, one a segment. The tile's bits stay as they are, and so does
    what is computed: only the epilogue's scalars grow in number, by ``4 * (m - p)`` bytes where
    the tile is whole rows and by nothing where rows are whole tiles. Folded in float64.

    Needs constant parameters, and a product that nothing else uses.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return relax.transform.DeadCodeElimination()(_Folder(mod).transform())


def scale_alphas(product: Product, alphas: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Alphas of a product whose every output row ``o`` is multiplied by ``scale[o]``.

    Parameters
    ----------
    product : Product
        What the alphas belong to.
    alphas : numpy.ndarray
        Float, shape ``(product.alpha_count,)``.
    scale : numpy.ndarray
        Float, shape ``(m,)``.

    Returns
    -------
    numpy.ndarray
        float64: one an output row, or one a segment where alpha changes inside a row.
    """
    geometry = product.geometry
    rows = np.arange(geometry.m)
    segments = product.segments
    if product.alpha_layout is AlphaLayout.TILE and segments > 1:
        index = (rows * geometry.n // geometry.q)[:, None] + np.arange(segments)[None, :]
        each = alphas[np.minimum(index, alphas.size - 1)]
    elif product.alpha_layout is AlphaLayout.TILE:
        each = alphas[rows * geometry.n // geometry.q][:, None]
    elif product.alpha_layout is AlphaLayout.LAYER:
        each = np.broadcast_to(alphas, (geometry.m, 1))
    else:
        each = alphas.reshape(geometry.m, -1)
    return (each.astype(np.float64) * scale[:, None]).reshape(-1)


@mutator
class _Folder(PyExprMutator):
    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self.mod = mod
        self._foldable: set[relax.Var] = set()

    def transform(self) -> tvm.IRModule:
        for name, func in self.mod.functions_items():
            if isinstance(func, relax.Function):
                self._uses = use_counts(func)
                self.builder_.update_func(name, self.visit_expr(func))
        return self.builder_.get()

    def visit_tuple_getitem_(self, item: relax.TupleGetItem) -> relax.Expr:
        used_once = self._uses[item.tuple_value] == 1
        item = self.visit_expr_post_order(item)
        norm = (
            self.lookup_binding(item.tuple_value)
            if isinstance(item.tuple_value, relax.Var)
            else item.tuple_value
        )
        if item.index != 0 or not used_once or not is_call(norm, "relax.nn.batch_norm"):
            return item
        folded = self._fold(norm)
        return item if folded is None else folded

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        if is_call(call, "relax.nn.batch_norm") and isinstance(call.args[0], relax.Var):
            used_once = self._uses[call.args[0]] == 1
            call = self.visit_expr_post_order(call)
            if used_once and isinstance(call.args[0], relax.Var):
                self._foldable.add(call.args[0])
            return call
        return self.visit_expr_post_order(call)

    def _fold(self, norm: relax.Call) -> relax.Call | None:
        x, *parameters = norm.args
        product = self.lookup_binding(x) if isinstance(x, relax.Var) else None
        if not op.is_product(product) or x not in self._foldable:
            return None
        axis = 1 if product.op.name != op.TILED_DENSE else x.ty.ndim - 1
        values = [constant_array(parameter) for parameter in parameters]
        alphas = constant_array(product.args[2])
        bias = constant_array(product.args[3]) if len(product.args) == 4 else 0.0
        if (
            int(norm.attrs.axis) % x.ty.ndim != axis
            or bool(norm.attrs.training)
            or alphas is None
            or bias is None
            or any(value is None for value in values)
        ):
            return None
        gamma, beta, mean, variance = (value.astype(np.float64) for value in values)
        scale = 1 / np.sqrt(variance + float(norm.attrs.epsilon))
        if norm.attrs.scale:
            scale = scale * gamma
        shift = (bias - mean) * scale
        if norm.attrs.center:
            shift = shift + beta
        alphas = scale_alphas(op.product_of(product), alphas, scale)
        dtype = constant_array(product.args[2]).dtype
        args = [
            *product.args[:2],
            relax.const(alphas.astype(dtype)),
            relax.const(shift.astype(str(x.ty.dtype))),
        ]
        return relax.Call(product.op, args, product.attrs)
