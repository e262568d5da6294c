"""Integer operations to kernels: what :mod:`tbn_tvm.quantize.model` defines, as loops."""

from __future__ import annotations

import functools
import operator

import numpy as np
import tvm
from tvm import relax, te
from tvm import tirx as tir

from tbn_tvm.quantize.model import (
    Add,
    Clamp,
    Lookup,
    MaxPool,
    Mean,
    Move,
    Operation,
    QuantizedModel,
    Rescale,
    Softmax,
    TiledProduct,
)
from tbn_tvm.quantize.scheme import FixedPoint
from tbn_tvm.relay_passes.lower_tiled_products import PRODUCT_ATTRS, choice_of
from tbn_tvm.schedules import reference
from tbn_tvm.schedules.families import family_of
from tbn_tvm.schedules.reference import Window
from tbn_tvm.schedules.rules import Workload


def lower(model: QuantizedModel, target: tvm.target.Target, records=None) -> tvm.IRModule:
    """A module whose ``main`` takes and returns integers and calls one kernel after the other.

    Parameters
    ----------
    model : QuantizedModel
        What to compute.
    target : tvm.target.Target
        Decides about the kernels of tiled products.
    records : optional
        Measured configurations.
    """
    return _Builder(model, target, records).build()


class _Builder:
    def __init__(self, model: QuantizedModel, target: tvm.target.Target, records) -> None:
        self.model, self.family, self.records = model, family_of(target), records
        self.builder = relax.BlockBuilder()
        self.values: dict[str, relax.Expr] = {}

    def build(self) -> tvm.IRModule:
        params = []
        for name, shape in self.model.inputs.items():
            dtype = self.model.tensors[name].dtype
            params.append(relax.Var(name, relax.TensorType(shape, dtype)))
            self.values[name] = params[-1]
        with self.builder.function("main", params):
            with self.builder.dataflow():
                for operation in self.model.operations:
                    self.values[operation.output] = self._emit(operation)
                results = [self.values[name] for name in self.model.outputs]
                returned = self.builder.emit_output(
                    results[0] if len(results) == 1 else relax.Tuple(results)
                )
            self.builder.emit_func_output(returned)
        return self.builder.get()

    def _emit(self, operation: Operation) -> relax.Expr:
        inputs = [self.values[name] for name in operation.inputs]
        match operation:
            case TiledProduct():
                return self._product(operation, *inputs)
            case Move():
                (x,) = inputs
                if operation.order is not None:
                    x = self.builder.emit(relax.op.permute_dims(x, list(operation.order)))
                return self.builder.emit(relax.op.reshape(x, operation.shape))
            case Lookup():
                inputs.append(relax.const(operation.table))
                made, hint = _looked_up, "lookup"
            case Softmax():
                inputs.append(relax.const(operation.table))
                made, hint = functools.partial(_softmax, operation), "softmax"
            case Add():
                made, hint = functools.partial(_add, operation), "add"
            case Rescale():
                made, hint = functools.partial(_rescale, operation), "rescale"
            case Mean():
                made, hint = functools.partial(_mean, operation), "mean"
            case MaxPool():
                made, hint = functools.partial(_max_pool, operation), "max_pool"
        return self.builder.emit_te(made, *inputs, primfunc_name_hint=hint)

    def _product(self, operation: TiledProduct, x: relax.Expr) -> relax.Expr:
        """Integer dot products, then the fixed-point mix."""
        product, window = operation.product, operation.window
        shape = [int(extent) for extent in x.ty.shape.values]
        dense = window is None
        workload = Workload(
            operation.operator,
            product,
            functools.reduce(operator.mul, shape[:-1], 1) if dense else shape[0],
            str(x.ty.dtype),
            self.family.features,
            window,
            () if dense else tuple(shape[2:]),
            zero_point=operation.zero_point,
        )
        choice = choice_of(workload, self.family, self.records)
        if choice is None:
            dots = self._reference_dots(operation, x)
        else:
            kernel = choice.kernel
            rows = kernel.rows(workload, choice.configs)
            if dense:
                made = [workload.batch, rows, product.segments]
                flat = x
                if len(shape) != 2:
                    flat = self.builder.emit(relax.op.reshape(x, [workload.batch, shape[-1]]))
            else:
                made = [shape[0], product.groups, rows, product.segments, *workload.out_extents]
                flat = x
            words = relax.const(kernel.layout(operation.tile, workload, choice.configs))
            func = choice.prim_func().with_attrs(PRODUCT_ATTRS)
            name = self.builder.add_func(func, f"{kernel.name}_int8")
            made_type = relax.TensorType(made, "int32")
            dots = self.builder.emit(relax.call_tir(name, [flat, words], made_type))
            if dense and len(shape) != 2:
                dots = self.builder.emit(relax.op.reshape(dots, [*shape[:-1], *made[1:]]))
        fixed = operation.fixed
        constants = [relax.const(fixed.multipliers), relax.const(fixed.offsets)]
        return self.builder.emit_te(
            functools.partial(_mix, operation),
            dots,
            *constants,
            primfunc_name_hint="scale",
        )

    def _reference_dots(self, operation: TiledProduct, x: relax.Expr) -> relax.Expr:
        product, zero = operation.product, operation.zero_point

        def compute(x, tile):
            centred = te.compute(
                x.shape, lambda *i: x(*i).astype("int32") - tir.const(zero, "int32"), "centred"
            )
            if operation.window is None:
                return reference.dense_dots(centred, tile, product)
            return reference.conv_dots(centred, tile, product, operation.window)

        return self.builder.emit_te(
            compute,
            x,
            relax.const(operation.tile),
            primfunc_name_hint="dots_int8",
            primfunc_attrs=PRODUCT_ATTRS,
        )


def _clamped(total, fixed: FixedPoint, clamp: Clamp):
    moved = tir.shift_right(total, tir.const(fixed.shift, "int32")) if fixed.shift else total
    bounded = tir.max(tir.min(moved, tir.const(clamp.high, "int32")), tir.const(clamp.low, "int32"))
    return bounded.astype(clamp.dtype)


def _mix(operation: TiledProduct, dots, multipliers, offsets):
    """Each output's segments times their alphas, plus its offset, as int8 or int16."""
    product, dense = operation.product, operation.window is None
    lead = len(dots.shape) - 2 if dense else 1
    shape = [*dots.shape[:lead], product.geometry.m, *(dots.shape[4:] if not dense else [])]

    def output(*indices):
        row, position = indices[lead], indices[lead + 1 :]
        total = offsets(row if int(offsets.shape[0]) > 1 else 0)
        for segment in range(product.segments):
            at = product.alpha_index(row, segment)
            if product.has_short_segments:
                at = tir.min(at, product.alpha_count - 1)
            if dense:
                dot = dots(*indices[:lead], row % product.unique_rows, segment)
            else:
                group, local = row // product.group_rows, row % product.group_rows
                dot = dots(indices[0], group, local % product.unique_rows, segment, *position)
            total = total + dot * multipliers(at).astype("int32")
        return _clamped(total, operation.fixed, operation.clamp)

    return te.compute(shape, output, "scale")


def _centred(x, indices, zero_point: int):
    return x(*indices).astype("int32") - tir.const(zero_point, "int32")


def _times(value, multiplier) -> tir.Expr:
    return value * tir.const(int(multiplier), "int32")


def _add(operation: Add, a, b):
    fixed = operation.fixed

    def output(*i):
        total = tir.const(int(fixed.offsets[0]), "int32")
        for x, zero, m in zip((a, b), operation.zero_points, fixed.multipliers, strict=True):
            total = total + _times(_centred(x, i, zero), m)
        return _clamped(total, fixed, operation.clamp)

    return te.compute(a.shape, output, "add")


def _rescale(operation: Rescale, x):
    fixed = operation.fixed

    def output(*i):
        total = _times(_centred(x, i, operation.zero_point), fixed.multipliers[0])
        return _clamped(total + int(fixed.offsets[0]), fixed, operation.clamp)

    return te.compute(x.shape, output, "rescale")


def _mean(operation: Mean, x):
    fixed = operation.fixed
    if operation.window is None:
        axes = [te.reduce_axis((0, x.shape[axis]), f"k{axis}") for axis in operation.axes]
        kept = [axis for axis in range(len(x.shape)) if axis not in operation.axes]
        full = [1 if a in operation.axes else x.shape[a] for a in range(len(x.shape))]
        shape = full if operation.keepdims else [x.shape[axis] for axis in kept]

        def total(*i):
            source = list(i) if operation.keepdims else [None] * len(x.shape)
            if not operation.keepdims:
                for axis, index in zip(kept, i, strict=True):
                    source[axis] = index
            for axis, index in zip(operation.axes, axes, strict=True):
                source[axis] = index
            return te.sum(_centred(x, source, operation.zero_point), axis=axes)

        sums = te.compute(shape, total, "sums")
    else:
        sums = _windowed(x, operation.window, lambda v: v - operation.zero_point, te.sum, 0, "sums")

    def output(*i):
        scaled = _times(sums(*i), fixed.multipliers[0]) + int(fixed.offsets[0])
        return _clamped(scaled, fixed, operation.clamp)

    return te.compute(sums.shape, output, "mean")


def _looked_up(x, table):
    return te.compute(x.shape, lambda *i: table(x(*i).astype("int32") + 128), "lookup")


def _softmax(operation: Softmax, x, table):
    axis, extent = operation.axis, x.shape[operation.axis]
    kept = [size for at, size in enumerate(x.shape) if at != axis]

    def along(reduced, rest):
        return [*rest[:axis], reduced, *rest[axis:]]

    def without(indices):
        return [index for at, index in enumerate(indices) if at != axis]

    k, j = te.reduce_axis((0, extent), "k"), te.reduce_axis((0, extent), "j")
    largest = te.compute(
        kept, lambda *i: te.max(x(*along(k, i)).astype("int32"), axis=k), "largest"
    )
    exponentials = te.compute(
        x.shape,
        lambda *i: table(largest(*without(i)) - x(*i).astype("int32")),
        "exponentials",
    )
    sums = te.compute(kept, lambda *i: te.sum(exponentials(*along(j, i)), axis=j), "sums")

    def output(*i):
        total = sums(*without(i))
        half = tir.shift_right(total, tir.const(1, "int32"))
        raised = tir.shift_left(exponentials(*i), tir.const(operation.bits, "int32"))
        scaled = tir.truncdiv(raised + half, total) + operation.zero_point
        clamp = operation.clamp
        bounded = tir.max(tir.min(scaled, clamp.high), clamp.low)
        return bounded.astype(clamp.dtype)

    return te.compute(x.shape, output, "softmax")


def _max_pool(operation: MaxPool, x):
    lowest = int(np.iinfo(str(x.dtype)).min)
    pooled = _windowed(x, operation.window, lambda v: v, te.max, lowest, "largest")
    return te.compute(pooled.shape, lambda *i: pooled(*i).astype(x.dtype), "max_pool")


def _windowed(x, window: Window, value, combine, fill: int, name: str):
    """Combine each channel's windows in int32."""
    rank = len(window.kernel)
    taps = [te.reduce_axis((0, size), f"t{axis}") for axis, size in enumerate(window.kernel)]
    outputs = window.output_extents([int(extent) for extent in x.shape[2:]])

    def output(b, c, *position):
        at = [
            p * step + tap * space - before
            for p, step, tap, space, before in zip(
                position,
                window.strides,
                taps,
                window.dilation,
                window.padding[:rank],
                strict=True,
            )
        ]
        element = value(x(b, c, *at).astype("int32"))
        if any(window.padding):
            inside = tir.all(
                *(
                    tir.all(index >= 0, index < extent)
                    for index, extent in zip(at, x.shape[2:], strict=True)
                )
            )
            element = tir.if_then_else(inside, element, tir.const(fill, "int32"))
        return combine(element, axis=taps)

    return te.compute([x.shape[0], x.shape[1], *outputs], output, name)
