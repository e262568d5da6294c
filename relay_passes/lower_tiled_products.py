"""Lower tiled products to the kernels that a target family's rules choose."""

from __future__ import annotations

import math

import tvm
from tbn_tvm.relay_passes._match import constant_array
from tbn_tvm.schedules import cortex_m, reference
from tbn_tvm.schedules.cortex_m import lookup_dense
from tbn_tvm.schedules.rules import Workload, choose
from tvm import relax
from tvm import tirx as tir
from tvm.relax.expr_functor import PyExprMutator, mutator

from tbn_tvm import op

_OPAQUE = 8  # relax's OpPatternKind: never fused with a neighbour


@tvm.transform.module_pass(opt_level=0, name="LowerTiledProducts")
class LowerTiledProducts:
    """Lower tiled products for Cortex-M as two kernels each: dot products, then scatter.

    The first stage is opaque to fusion and the second is elementwise, so that following
    activations fuse into the stage that writes the outputs, and the memory planner may reuse
    the first stage's input and scratch for the outputs.

    The tile of a chosen kernel is laid out for it here, at compile time. A product whose tile
    is no constant, or that no rule covers, gets the reference kernel.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return _Lowerer(mod).transform()


@mutator
class _Lowerer(PyExprMutator):
    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self.mod = mod

    def transform(self) -> tvm.IRModule:
        for name, func in self.mod.functions_items():
            if isinstance(func, relax.Function):
                self.builder_.update_func(name, self.visit_expr(func))
        return self.builder_.get()

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if not op.is_product(call):
            return call
        product, x = op.product_of(call), call.args[0]
        dots = self.builder_.emit(self._dots(call, product))
        dtype = str(x.ty.dtype)
        scatter = (
            reference.dense_scatter if call.op.name == op.TILED_DENSE else reference.conv_scatter
        )
        return self.builder_.call_te(
            lambda dots, alpha, bias=None: scatter(dots, alpha, bias, product, dtype),
            dots,
            *call.args[2:],
            primfunc_name_hint=f"{_short(call)}_scatter",
        )

    def _dots(self, call: relax.Call, product: reference.Product) -> relax.Call:
        x, tile = call.args[:2]
        bits = constant_array(tile)
        kernel = choose(cortex_m.RULES, _workload(call, product)) if bits is not None else None
        if kernel == "lookup_dense":
            words = relax.const(lookup_dense.column_words(bits, product))
            func = lookup_dense.prim_func(product).with_attr("op_pattern", _OPAQUE)
            lead = [1] * (x.ty.ndim - 1)
            if x.ty.ndim != 2:
                x = self.builder_.emit(relax.op.reshape(x, [1, product.geometry.n]))
            dots = relax.call_tir(
                self.builder_.add_func(func, "lookup_dense"),
                [x, words],
                relax.TensorType([1, product.unique_rows, 1], "float32"),
            )
            if len(lead) == 1:
                return dots
            return relax.op.reshape(self.builder_.emit(dots), [*lead, product.unique_rows, 1])
        if call.op.name == op.TILED_DENSE:

            def compute(x, tile):
                return reference.dense_dots(x, tile, product)
        else:
            window = op.window_of(call)

            def compute(x, tile):
                return reference.conv_dots(x, tile, product, window)

        return self.builder_.call_te(
            compute,
            x,
            tile,
            primfunc_name_hint=f"{_short(call)}_dots",
            primfunc_attrs={"op_pattern": _OPAQUE},
        )


def _short(call: relax.Call) -> str:
    return call.op.name.split(".")[-1]


def _workload(call: relax.Call, product: reference.Product) -> Workload:
    x = call.args[0].ty
    batch = None
    if call.op.name == op.TILED_DENSE:
        lead = x.shape.values[:-1]
        if all(isinstance(extent, tir.IntImm) for extent in lead):
            batch = math.prod(int(extent) for extent in lead)
    return Workload(call.op.name, product, batch, str(x.dtype))
