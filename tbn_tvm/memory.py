"""How much memory a compiled model takes, planned from its program; measured, see ``meter``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import tvm
import tvm_ffi
from tvm import relax, s_tir, sym
from tvm import tirx as tir

from tbn_tvm.errors import TbnError
from tbn_tvm.relay_passes._match import is_call
from tbn_tvm.signature import Signature

_PAGE = 4096
"""TVM's pooled allocator deals in whole pages of this many bytes."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes a model takes on its device while it runs, by TVM's static plan.

    Attributes
    ----------
    batch : int
        Samples in one run; every symbolic dimension is taken to be as large.
    weights : int
        Constants as stored: tile bits, scalars, biases and whatever stayed float.
    inputs : int
        The inputs' copies on the device.
    activations : int
        What the run's allocator holds at most: outputs and everything in between.
    workspace : int
        Global scratch that the most demanding kernel allocates on its own.
    """

    batch: int
    weights: int
    inputs: int
    activations: int
    workspace: int

    @property
    def peak(self) -> int:
        """All of them together."""
        return self.weights + self.inputs + self.activations + self.workspace

    def to_dict(self) -> dict:
        """For JSON."""
        return {**asdict(self), "peak": self.peak}


def plan_memory(
    mod: tvm.IRModule,
    constants: Sequence[np.ndarray],
    signature: Signature,
    batch: int,
    keep_all: bool = False,
) -> MemoryPlan:
    """Add up what a program allocates.

    Parameters
    ----------
    mod : tvm.IRModule
        After ``StaticPlanBlockMemory`` and before what the run time's own passes make of it.
    constants : sequence of numpy.ndarray
        The trailing parameters of ``main``.
    signature : Signature
        Inputs, for their sizes.
    batch : int
        What symbolic dimensions are taken to be.
    keep_all : bool
        Whether storage is kept from run to run and never shared between allocations, as captured
        CUDA graphs need it.
    """
    lowered = relax.transform.LowerAllocTensor()(mod)
    return MemoryPlan(
        batch=batch,
        weights=sum(array.nbytes for array in constants),
        inputs=sum(spec.nbytes * batch ** _free_axes(spec.shape) for spec in signature.inputs),
        activations=_Pool(batch, keep_all).run(lowered["main"]),
        workspace=max(
            (
                sum(_bytes(b.shape, str(b.dtype), batch) for b in _global_scratch(func))
                for func in mod.functions.values()
                if isinstance(func, tir.PrimFunc)
            ),
            default=0,
        ),
    )


class _Pool:
    """TVM's pooled allocator at work on a straight line of allocations: freed blocks are kept,
    and taken again for allocations of just their size."""

    def __init__(self, batch: int, keep_all: bool) -> None:
        self._batch, self._keep_all = batch, keep_all
        # The storages that a variable keeps alive, and the step at which each is used last.
        self._held: dict[relax.Var, frozenset] = {}
        self._last: dict[relax.Var, int] = {}

    def run(self, main: relax.Function) -> int:
        """Bytes taken from the device by the end."""
        bindings = [binding for block in main.body.blocks for binding in block.bindings]
        for step, binding in enumerate(bindings):
            self._note(step, binding.var, binding.value)
        for storage in self._storages(main.body.body):
            self._last[storage] = len(bindings)
        taken, free = 0, Counter()
        sizes = {}
        for step, binding in enumerate(bindings):
            if _is_allocation(binding.value):
                (nbytes,) = binding.value.args[0].values
                pages = -(-_number(nbytes, self._batch) // _PAGE) * _PAGE
                sizes[binding.var] = pages
                if free[pages]:
                    free[pages] -= 1
                else:
                    taken += pages
            for storage, pages in list(sizes.items()):
                if self._last[storage] == step and not self._keep_all:
                    free[pages] += 1
                    del sizes[storage]
        return taken

    def _note(self, step: int, var: relax.Var, value: relax.Expr) -> None:
        if isinstance(value, relax.If):
            raise TbnError("a model with branches has no static memory plan")
        used = self._storages(value)
        if _is_allocation(value):
            used = frozenset([var])
        for storage in used:
            self._last[storage] = step
        # A kernel's result is in its arguments; what else takes a tensor may be a view of it.
        launches = isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.GlobalVar)
        self._held[var] = frozenset() if launches else used

    def _storages(self, expr: relax.Expr) -> frozenset:
        if isinstance(expr, relax.Var):
            return self._held.get(expr, frozenset())
        if isinstance(expr, relax.TupleGetItem):
            return self._storages(expr.tuple_value)
        parts = expr.fields if isinstance(expr, relax.Tuple) else getattr(expr, "args", ())
        return frozenset().union(*map(self._storages, parts))


def _is_allocation(value: relax.Expr) -> bool:
    return is_call(value, "relax.memory.alloc_storage")


def _global_scratch(func: tir.PrimFunc) -> Iterable[tir.Buffer]:
    """Buffers in global memory that a function of blocks allocates for itself."""
    found = []

    def visit(block: s_tir.SBlock) -> None:
        found.extend(buffer for buffer in block.alloc_buffers if buffer.scope() == "global")

    tvm_ffi.structural_walk(func.body, [(s_tir.SBlock, visit)], order="post")
    return found


def _bytes(shape: Sequence, dtype: str, batch: int) -> int:
    bits = tvm.DataType(dtype).bits
    return math.prod(_number(extent, batch) for extent in shape) * bits // 8


def _number(extent, batch: int) -> int:
    """An extent with every symbolic dimension as large as the batch."""
    if isinstance(extent, int):
        return extent
    analyzer = sym.Analyzer()
    for variable in tir.analysis.undefined_vars(extent):
        analyzer.bind(variable, tir.const(batch, str(variable.ty.dtype)))
    return int(analyzer.simplify(extent))


def _free_axes(shape: Sequence) -> int:
    return sum(isinstance(extent, str) for extent in shape)
