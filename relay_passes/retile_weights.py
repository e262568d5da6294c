"""What a model would be at another compression factor: structure only."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from tbn_tvm import op
from tbn_tvm.relay_passes._match import constant_array, is_call, rewrite_functions
from tbn_tvm.tiling import TiledTensor

_TILED_CONVOLUTIONS = {"relax.nn.conv1d": op.tiled_conv1d, "relax.nn.conv2d": op.tiled_conv2d}
_CONVOLUTIONS = {op.TILED_CONV1D: relax.op.nn.conv1d, op.TILED_CONV2D: relax.op.nn.conv2d}
_LAYOUTS = (("NCW", "OIW"), ("NCHW", "OIHW"))


class RetileWeights:
    """Give every product with constant weights another compression factor.

    Float and tiled products become tiled ones, or all become float ones. The new tile comes from
    the signs of the weight's sum over the blocks, the alphas from its magnitudes: sizes, kernels
    and times are those of a model trained so, outputs are not.

    Parameters
    ----------
    p : int or None
        Compression factor; it must divide the weights of every layer that is not small. None for
        float weights.
    min_size : int
        Layers with fewer weights are binary (lambda of the paper).
    alpha : {"tile", "layer"}
        One scalar a use of the tile, or one a layer.
    """

    def __new__(
        cls, p: int | None, min_size: int = 64_000, alpha: str = "tile"
    ) -> tvm.transform.Pass:
        @tvm.transform.module_pass(opt_level=0, name="RetileWeights")
        def retile(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
            mod = rewrite_functions(mod, _Retiler(mod, p, min_size, alpha))
            return relax.transform.DeadCodeElimination()(mod)

        return retile


def factor_of(weights: int, p: int, min_size: int) -> int:
    """The compression factor that a layer of so many weights gets."""
    return p if weights >= min_size else 1


@mutator
class _Retiler(PyExprMutator):
    def __init__(self, mod: tvm.IRModule, p: int | None, min_size: int, alpha: str) -> None:
        super().__init__(mod)
        self._p, self._min_size, self._alpha = p, min_size, alpha

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if op.is_product(call):
            return self._from_tiled(call)
        if self._p is None or not isinstance(call.op, tvm.ir.Op):
            return call
        if is_call(call, "relax.matmul"):
            dense = self._matmul_weight(call.args[1])
            if dense is None or call.args[0].ty.ndim < 1:
                return call
            tiled = self._tiled(dense)
            return op.tiled_dense(call.args[0], *_constants(tiled), out_features=tiled.m, p=tiled.p)
        if call.op.name in _TILED_CONVOLUTIONS:
            dense = constant_array(self._resolve(call.args[1]))
            layouts = (str(call.attrs.data_layout), str(call.attrs.kernel_layout))
            if dense is None or layouts not in _LAYOUTS:
                return call
            tiled = self._tiled(dense)
            return _TILED_CONVOLUTIONS[call.op.name](
                call.args[0],
                *_constants(tiled),
                out_channels=tiled.m,
                p=tiled.p,
                kernel_size=tiled.shape[2:],
                strides=[int(step) for step in call.attrs.strides],
                padding=[int(pad) for pad in call.attrs.padding],
                dilation=[int(step) for step in call.attrs.dilation],
                groups=int(call.attrs.groups),
            )
        return call

    def _from_tiled(self, call: relax.Call) -> relax.Expr:
        # Not at the top: that module asks this folder for its questions about calls.
        from tbn_tvm.inspect import tiled_tensor

        held = tiled_tensor(call)
        if held is None:
            return call
        if self._p is None:
            return self._dense_product(call, held)
        tiled = self._tiled(held.expand())
        attributes = {**op.attributes(call), "p": tiled.p}
        return relax.Call(
            call.op,
            [call.args[0], *_constants(tiled), *call.args[3:]],
            tvm.ir.make_node("ir.DictAttrs", **attributes),
        )

    def _dense_product(self, call: relax.Call, held: TiledTensor) -> relax.Expr:
        x, emit = call.args[0], self.builder_.emit
        weight = relax.const(held.expand().astype(str(x.ty.dtype)))
        if call.op.name == op.TILED_DENSE:
            result = relax.op.matmul(x, emit(relax.op.permute_dims(weight)))
        else:
            attrs = op.attributes(call)
            result = _CONVOLUTIONS[call.op.name](
                x,
                weight,
                strides=attrs["strides"],
                padding=attrs["padding"],
                dilation=attrs["dilation"],
                groups=attrs["groups"],
            )
        if len(call.args) < 4:
            return result
        bias = call.args[3]
        if call.op.name != op.TILED_DENSE:
            axes = [1, held.m] + [1] * (len(held.shape) - 2)
            bias = emit(relax.op.reshape(bias, axes))
        return relax.op.add(emit(result), bias)

    def _tiled(self, dense: np.ndarray) -> TiledTensor:
        p = factor_of(dense.size, self._p, self._min_size)
        blocks = dense.astype(np.float32).reshape(p, -1)
        alphas = np.abs(blocks).mean(1)
        if self._alpha == "layer":
            alphas = alphas.mean(keepdims=True)
        return TiledTensor.from_signs(blocks.sum(0), alphas, dense.shape)

    def _matmul_weight(self, operand: relax.Expr) -> np.ndarray | None:
        """The constant second operand of a product, an output feature a row."""
        value = self._resolve(operand)
        if is_call(value, "relax.permute_dims"):
            dense = constant_array(self._resolve(value.args[0]))
        else:
            dense = constant_array(value)
            dense = None if dense is None else dense.T
        return dense if dense is not None and dense.ndim == 2 else None

    def _resolve(self, expr: relax.Expr) -> relax.Expr | None:
        return self.lookup_binding(expr) if isinstance(expr, relax.Var) else expr


def _constants(tiled: TiledTensor) -> tuple[relax.Constant, relax.Constant]:
    return relax.const(tiled.tile), relax.const(tiled.alphas)
