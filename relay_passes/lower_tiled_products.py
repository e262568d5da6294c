"""Lower tiled products to the kernels that a target family's rules choose."""

from __future__ import annotations

import functools
import math
import operator

import tvm
from tvm import relax
from tvm import tirx as tir
from tvm.relax.expr_functor import PyExprMutator, mutator

from tbn_tvm import op
from tbn_tvm.relay_passes._match import constant_array, rewrite_functions
from tbn_tvm.schedules import reference
from tbn_tvm.schedules.cpu import im2col
from tbn_tvm.schedules.families import DenseKernel, Family, family_of
from tbn_tvm.schedules.rules import Workload, choose

# Pattern 8 of relax's OpPatternKind is opaque: never fused with a neighbour.
_PRODUCT_ATTRS = {"op_pattern": 8, reference.TILED_PRODUCT: True}


class LowerTiledProducts:
    """Lower tiled products as two kernels each: dot products, then scatter.

    The first stage is opaque to fusion and the second is elementwise, so that following
    activations fuse into the stage that writes the outputs, and a memory planner may reuse the
    first stage's input and scratch for the outputs.

    The tile of a chosen kernel is laid out for it here, at compile time. A product whose tile is
    no constant, or that no rule covers, gets the reference kernel.

    Parameters
    ----------
    target : tvm.target.Target
        Decides about the family of kernels.
    """

    def __new__(cls, target: tvm.target.Target) -> tvm.transform.Pass:
        family = family_of(target)

        @tvm.transform.module_pass(opt_level=0, name="LowerTiledProducts")
        def lower(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
            return rewrite_functions(mod, _Lowerer(mod, family))

        return lower


@mutator
class _Lowerer(PyExprMutator):
    def __init__(self, mod: tvm.IRModule, family: Family) -> None:
        super().__init__(mod)
        self.family = family

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if not op.is_product(call):
            return call
        product, x = op.product_of(call), call.args[0]
        kernel = self._kernel(call, product)
        if kernel is not None and call.op.name != op.TILED_DENSE:
            return self._windowed(call, product, kernel)
        if kernel is not None:
            dots = self._chosen_dots(x, call.args[1], product, kernel)
        elif self.family.splits_reference:
            dots = self.builder_.emit(self._reference_dots(call, product))
        else:
            return call
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

    def _kernel(self, call: relax.Call, product: reference.Product) -> DenseKernel | None:
        if constant_array(call.args[1]) is None:
            return None
        x = call.args[0].ty
        batch = _extent(x.shape.values[:-1]) if call.op.name == op.TILED_DENSE else None
        if call.op.name != op.TILED_DENSE and any(
            not isinstance(extent, tir.IntImm) for extent in x.shape.values[2:]
        ):
            return None
        workload = Workload(
            call.op.name,
            product,
            int(batch) if isinstance(batch, (int, tir.IntImm)) else None,
            str(x.dtype),
            self.family.features,
        )
        name = choose(self.family.rules, workload)
        return None if name is None else self.family.kernels[name]

    def _windowed(
        self, call: relax.Call, product: reference.Product, kernel: DenseKernel
    ) -> relax.Expr:
        """A convolution as a dense product of its windows with the unique filters."""
        x, window = call.args[0], op.window_of(call)
        shape = im2col.columns_shape(x.ty.shape.values, window)
        batch, extents = shape[0], shape[1 : 1 + len(window.kernel)]
        func = im2col.prim_func(x.ty.shape.values, window).with_attr("op_pattern", 8)
        windows = self.builder_.emit(
            relax.call_tir(
                self.builder_.add_func(func, "im2col"), [x], relax.TensorType(shape, "float32")
            )
        )
        columns = self.builder_.emit(
            relax.op.reshape(windows, [batch, math.prod(extents), product.geometry.n])
        )
        bits = constant_array(call.args[1])
        tile = relax.const(im2col.taps_first(bits, product, math.prod(window.kernel)))
        dots = self._chosen_dots(columns, tile, product, kernel)
        dtype = str(x.ty.dtype)
        return self.builder_.call_te(
            lambda dots, alpha, bias=None: reference.window_scatter(
                dots, alpha, bias, product, dtype, extents
            ),
            dots,
            *call.args[2:],
            primfunc_name_hint=f"{_short(call)}_scatter",
        )

    def _chosen_dots(
        self, x: relax.Expr, tile: relax.Expr, product: reference.Product, kernel: DenseKernel
    ) -> relax.Expr:
        """The chosen kernel over the input as a matrix; its result with the leading axes back."""
        lead = list(x.ty.shape.values[:-1])
        batch = _extent(lead)
        if len(lead) != 1:
            x = self.builder_.emit(relax.op.reshape(x, [batch, product.geometry.n]))
        words = relax.const(kernel.layout(constant_array(tile), product))
        func = kernel.prim_func(
            product, int(batch) if isinstance(batch, (int, tir.IntImm)) else None
        )
        rows = kernel.rows(product)
        dots = self.builder_.emit(
            relax.call_tir(
                self.builder_.add_func(func.with_attrs(_PRODUCT_ATTRS), "lookup_dense"),
                [x, words],
                relax.TensorType([batch, rows, 1], "float32"),
            )
        )
        if len(lead) == 1:
            return dots
        return self.builder_.emit(relax.op.reshape(dots, [*lead, rows, 1]))

    def _reference_dots(self, call: relax.Call, product: reference.Product) -> relax.Call:
        if call.op.name == op.TILED_DENSE:

            def compute(x, tile):
                return reference.dense_dots(x, tile, product)
        else:
            window = op.window_of(call)

            def compute(x, tile):
                return reference.conv_dots(x, tile, product, window)

        return self.builder_.call_te(
            compute,
            *call.args[:2],
            primfunc_name_hint=f"{_short(call)}_dots",
            primfunc_attrs=_PRODUCT_ATTRS,
        )


def _short(call: relax.Call) -> str:
    return call.op.name.split(".")[-1]


def _extent(axes):
    """The product of extents: a number where all are, an expression otherwise."""
    if all(isinstance(extent, (int, tir.IntImm)) for extent in axes):
        return math.prod(int(extent) for extent in axes)
    return functools.reduce(operator.mul, axes)
