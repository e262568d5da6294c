"""Lower tiled products to the kernels that a target family's rules choose."""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import dataclass

import tvm
from tvm import relax
from tvm import tirx as tir
from tvm.relax.expr_functor import PyExprMutator, mutator

from tbn_tvm import op
from tbn_tvm.relay_passes._match import constant_array, rewrite_functions
from tbn_tvm.schedules import fused, reference
from tbn_tvm.schedules.families import Family, family_of
from tbn_tvm.schedules.kernel import Config, Kernel
from tbn_tvm.schedules.rules import Workload, choose

# Pattern 8 of relax's OpPatternKind is opaque: never fused with a neighbour.
PRODUCT_ATTRS = {"op_pattern": 8, reference.TILED_PRODUCT: True}


# Pattern 4 is "out elementwise fusable": elementwise followers join it, as they join a convolution.
_FUSED_ATTRS = {"op_pattern": 4, reference.TILED_PRODUCT: True}


class LowerTiledProducts:
    """Lower tiled products to the kernels that rules and records choose.

    A kernel that writes outputs becomes a stand-in, which elementwise followers fuse with and
    ``BuildFusedKernels`` replaces. Any other product becomes two functions, dot products and then
    scatter: the first stage is opaque to fusion and the second is elementwise, so that following
    activations fuse into the stage that writes the outputs, and a memory planner may reuse the
    first stage's input and scratch for the outputs.

    The tile is laid out for its kernel here, at compile time. A product whose tile is no
    constant, or that no rule covers, gets the reference kernel.

    Parameters
    ----------
    target : tvm.target.Target
        Decides about the family of kernels.
    records : tbn_tvm.schedules.records.Records, optional
        Measured configurations, which go before the kernels' defaults.
    """

    def __new__(cls, target: tvm.target.Target, records=None) -> tvm.transform.Pass:
        family = family_of(target)

        @tvm.transform.module_pass(opt_level=0, name="LowerTiledProducts")
        def lower(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
            return rewrite_functions(mod, _Lowerer(mod, family, records))

        return lower


@dataclass(frozen=True)
class Choice:
    """A kernel with its configurations, one a regime, and where each comes from."""

    kernel: Kernel
    workload: Workload
    configs: tuple[Config, ...]
    sources: tuple[str, ...]

    def prim_func(self) -> tir.PrimFunc:
        """The kernel's function, annotated for reports."""
        func = self.kernel.prim_func(self.workload, self.configs)
        return fused.annotated(func, self.kernel, self.configs, self.sources)


def workload_of(call: relax.Call, features: frozenset[str] = frozenset()) -> Workload:
    """What a tiled product's call computes, as rules and records see it."""
    x, dense = call.args[0].ty, call.op.name == op.TILED_DENSE
    axes = list(x.shape.values)
    batch = _extent(axes[:-1] if dense else axes[:1])
    spatial = [] if dense else axes[2:]
    known = all(isinstance(extent, tir.IntImm) for extent in spatial)
    return Workload(
        call.op.name,
        op.product_of(call),
        int(batch) if isinstance(batch, (int, tir.IntImm)) else None,
        str(x.dtype),
        features,
        None if dense else op.window_of(call),
        tuple(int(extent) for extent in spatial) if known else (),
        bias=len(call.args) == 4,
    )


def choice_of(workload: Workload, family: Family, records=None) -> Choice | None:
    """The kernel and configurations of a workload; None for the reference kernel."""
    name = choose(family.rules, workload)
    if records is not None:
        name = records.kernel(family, workload) or name
    if name is None:
        return None
    kernel = family.kernels[name]
    configs, sources = [], []
    for regime in kernel.regimes(workload):
        found = None if records is None else records.config(kernel, regime)
        configs.append(kernel.default(regime) if found is None else found[0])
        sources.append("rules" if found is None else found[1])
    return Choice(kernel, workload, tuple(configs), tuple(sources))


@mutator
class _Lowerer(PyExprMutator):
    def __init__(self, mod: tvm.IRModule, family: Family, records) -> None:
        super().__init__(mod)
        self.family = family
        self.records = records

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if not op.is_product(call):
            return call
        product, x = op.product_of(call), call.args[0]
        choice = None
        if constant_array(call.args[1]) is not None:
            workload = workload_of(call, self.family.features)
            choice = choice_of(workload, self.family, self.records)
        if choice is not None and choice.kernel.writes_outputs:
            return self._stand_in(call, choice)
        if choice is not None:
            dots = self._chosen_dots(x, call.args[1], choice)
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

    def _stand_in(self, call: relax.Call, choice: Choice) -> relax.Expr:
        """A block that stands for the kernel until TVM has fused what follows."""
        kernel, workload = choice.kernel, choice.workload
        words = kernel.layout(constant_array(call.args[1]), workload, choice.configs)
        operands = [call.args[0], relax.const(words), *call.args[2:]]
        plan = {
            "kernel": kernel.name,
            "workload": workload.to_dict(),
            "configs": [dict(config) for config in choice.configs],
            "sources": list(choice.sources),
            "reads": len(operands),
        }
        return self.builder_.call_te(
            lambda *tensors: fused.stand_in(
                list(tensors), _output_shape(tensors[0], workload), plan
            ),
            *operands,
            primfunc_name_hint=_short(call),
            primfunc_attrs=_FUSED_ATTRS,
        )

    def _chosen_dots(self, x: relax.Expr, tile: relax.Expr, choice: Choice) -> relax.Expr:
        """The chosen kernel's dot products, of the shape that the scatter stage reads."""
        kernel, workload = choice.kernel, choice.workload
        product, lead = workload.product, list(x.ty.shape.values[:-1])
        rows = kernel.rows(workload, choice.configs)
        if not workload.is_dense:
            batch = x.ty.shape.values[0]
            shape = [batch, product.groups, rows, product.segments, *workload.out_extents]
        else:
            batch = _extent(lead)
            shape = [batch, rows, product.segments]
            if len(lead) != 1:  # the kernel reads a matrix
                x = self.builder_.emit(relax.op.reshape(x, [batch, product.geometry.n]))
        words = relax.const(kernel.layout(constant_array(tile), workload, choice.configs))
        func = choice.prim_func().with_attrs(PRODUCT_ATTRS)
        dots = self.builder_.emit(
            relax.call_tir(
                self.builder_.add_func(func, kernel.name),
                [x, words],
                relax.TensorType(shape, "float32"),
            )
        )
        if not workload.is_dense or len(lead) == 1:
            return dots
        return self.builder_.emit(relax.op.reshape(dots, [*lead, *shape[1:]]))

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
            primfunc_attrs=PRODUCT_ATTRS,
        )


def _output_shape(x, workload: Workload) -> list:
    """The outputs' shape in terms of the input's own symbols."""
    rows = workload.product.geometry.m
    if workload.is_dense:
        return [*x.shape[:-1], rows]
    return [x.shape[0], rows, *workload.window.output_extents(list(x.shape[2:]))]


def _short(call: relax.Call) -> str:
    return call.op.name.split(".")[-1]


def _extent(axes):
    """The product of extents: a number where all are, an expression otherwise."""
    if all(isinstance(extent, (int, tir.IntImm)) for extent in axes):
        return math.prod(int(extent) for extent in axes)
    return functools.reduce(operator.mul, axes)
