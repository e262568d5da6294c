"""Kernels that write a product's outputs in one launch, and what of the graph they take along.

Such a kernel enters the graph as a *stand-in*: a function of one elementwise block whose value is
an opaque call of :data:`STAND_IN`. TVM fuses followers (activations, residual additions) with
it like with any other block. Then ``BuildFusedKernels`` reads what the fused function adds to the
product and has the kernel's template write it where the outputs are stored.
"""

from __future__ import annotations

import functools
import json
import operator
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import tvm
from tvm import te
from tvm import tirx as tir
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tbn_tvm.schedules.kernel import KERNEL_ATTR, Config, Kernel
from tbn_tvm.schedules.reference import SCHEDULED
from tbn_tvm.schedules.rules import Workload

STAND_IN = "tbn_tiled_product"


@dataclass(frozen=True)
class Operands:
    """What a template reads and writes.

    Attributes
    ----------
    x : Buffer
        Activations: ``(..., n)`` or ``(B, C, *spatial)``.
    words : Buffer
        The tile as the kernel's layout has it.
    alpha : Buffer
        float32, the product's scalars.
    bias : Buffer or None
        ``(m,)``.
    y : Buffer
        Outputs: ``(..., m)`` or ``(B, m, *spatial)``.
    finish : callable
        ``(value, indices) -> expression``: the stored output for the product's own output
        ``value`` (float32, bias included) at ``indices`` of ``y``.
    """

    x: tir.Buffer
    words: tir.Buffer
    alpha: tir.Buffer
    bias: tir.Buffer | None
    y: tir.Buffer
    finish: Callable[[tir.Expr, list], tir.Expr]

    @property
    def samples(self):
        """Input vectors of a dense product: the extent of its leading axes together."""
        lead = self.x.shape[:-1]
        return functools.reduce(operator.mul, lead) if len(lead) else tir.IntImm("int32", 1)

    def lead_indices(self, sample) -> list:
        """Indices of ``y``'s leading axes for an input vector's number (dense products)."""
        indices = []
        extents = list(self.y.shape[:-1])
        for extent in reversed(extents[1:]):
            indices.insert(0, sample % extent)
            sample = sample // extent
        return [sample, *indices] if extents else []

    def scaled(self, workload: Workload, dot, row):
        """``alpha * dot + bias`` of an output row, in float32; one segment a row."""
        value = dot * self.alpha[workload.product.alpha_index(row, 0)].astype("float32")
        return value if self.bias is None else value + self.bias[row].astype("float32")


class FusedKernel(Kernel):
    """A kernel whose template writes outputs; subclasses provide :meth:`emit`."""

    writes_outputs = True

    @abstractmethod
    def emit(self, io: Operands, workload: Workload, configs: tuple[Config, ...]) -> None:
        """Write the function's body with TVM's IR builder, inside its ``prim_func`` frame."""

    @abstractmethod
    def words_shape(
        self, workload: Workload, configs: tuple[Config, ...]
    ) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of what :meth:`layout` returns."""

    def prim_func(self, workload: Workload, configs: tuple[Config, ...]) -> tir.PrimFunc:
        """The kernel alone, over inputs of the workload's own shape."""
        product = workload.product
        batch = tir.Var("batch", "int64") if workload.batch is None else workload.batch
        x_shape, y_shape = [batch], [batch]
        if workload.is_dense:
            x_shape.append(product.geometry.n)
            y_shape.append(product.geometry.m)
        else:
            x_shape += [workload.channels * product.groups, *workload.extents]
            y_shape += [product.geometry.m, *workload.out_extents]
        buffers = [
            tir.decl_buffer(x_shape, workload.dtype, "x"),
            tir.decl_buffer(*self.words_shape(workload, configs), "words"),
            tir.decl_buffer((product.alpha_count,), "float32", "alpha"),
        ]
        if workload.bias:
            buffers.append(tir.decl_buffer((product.geometry.m,), "float32", "bias"))
        y = tir.decl_buffer(y_shape, workload.dtype, "y")
        io = Operands(
            *buffers[:3],
            buffers[3] if workload.bias else None,
            y,
            lambda value, _indices: value.astype(workload.dtype),
        )
        return self.build([*buffers, y], io, workload, configs)

    def build(
        self,
        params: list[tir.Buffer],
        io: Operands,
        workload: Workload,
        configs: tuple[Config, ...],
    ) -> tir.PrimFunc:
        """The function over given parameters, which ``io`` refers to."""
        with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
            for param in params:
                T.arg(param.name, param)
            self.emit(io, workload, configs)
        func = builder.get()
        return func.with_attrs({"tirx.noalias": True, SCHEDULED: True})


def stand_in(tensors: list[te.Tensor], y_shape, plan: dict) -> te.Tensor:
    """The stand-in's one block: an opaque value for each output.

    Parameters
    ----------
    tensors : list of te.Tensor
        ``x, words, alpha[, bias]``; the block reads an element of each, so that they stay known.
    y_shape : sequence
        Shape of the outputs.
    plan : dict
        What :func:`read_plan` gets back.
    """
    dtype = str(tensors[0].dtype)

    def element(*indices):
        reads = [tensor(*(tir.const(0, "int64") for _ in tensor.shape)) for tensor in tensors]
        return tir.call_pure_extern(dtype, STAND_IN, json.dumps(plan), *reads, *indices)

    return te.compute(y_shape, element, name=STAND_IN)


def is_stand_in(expr) -> bool:
    """Whether an expression is a stand-in's opaque value."""
    return (
        isinstance(expr, tvm.ir.Call)
        and isinstance(expr.op, tvm.ir.Op)
        and expr.op.name == "tirx.call_pure_extern"
        and str(expr.args[0].value) == STAND_IN
    )


def read_plan(call) -> dict:
    """The plan of a stand-in's opaque value."""
    return json.loads(str(call.args[1].value))


def annotated(func: tir.PrimFunc, kernel: Kernel, configs, sources) -> tir.PrimFunc:
    """The function with a note of what made it, for reports."""
    note = {
        "kernel": kernel.name,
        "version": kernel.version,
        "configs": [dict(config) for config in configs],
        "sources": list(sources),
    }
    return func.with_attr(KERNEL_ATTR, json.dumps(note))
