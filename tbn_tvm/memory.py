"""How much memory a compiled model takes: planned from its program, and measured on the device."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import tvm
import tvm_ffi
from tvm import relax, s_tir, sym
from tvm import tirx as tir

from tbn_tvm.errors import TbnError
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
    lowered = tvm.transform.Sequential(
        [relax.transform.LowerAllocTensor(), relax.transform.KillAfterLastUse()]
    )(mod)
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
        self._held = 0
        self._free: Counter[int] = Counter()
        self._sizes: dict[relax.Var, int] = {}

    def run(self, main: relax.Function) -> int:
        for block in main.body.blocks:
            for binding in block.bindings:
                self._step(binding.var, binding.value)
        return self._held

    def _step(self, var: relax.Var, value: relax.Expr) -> None:
        if isinstance(value, relax.If):
            raise TbnError("a model with branches has no static memory plan")
        if not isinstance(value, relax.Call) or not isinstance(value.op, tvm.ir.Op):
            return
        if value.op.name == "relax.memory.alloc_storage":
            (nbytes,) = value.args[0].values
            pages = -(-_number(nbytes, self._batch) // _PAGE) * _PAGE
            if self._free[pages]:
                self._free[pages] -= 1
            else:
                self._held += pages
            self._sizes[var] = pages
        elif value.op.name == "relax.memory.kill_storage" and not self._keep_all:
            self._free[self._sizes[value.args[0]]] += 1


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


class MemoryMeter:
    """The most memory seen in use on a device since the meter was made.

    For a GPU it is what the driver has handed out on that device, to every process: run alone for
    figures worth quoting. For the CPU it is this process's resident memory. What the measured code
    keeps (TVM's allocators keep what they once took) is seen even where :meth:`sample` is called
    after the fact only.

    Parameters
    ----------
    device : tvm.runtime.Device
        ``tvm.cpu()`` or ``tvm.cuda()``.
    """

    def __init__(self, device: tvm.runtime.Device) -> None:
        self._used = _resident if device.dlpack_device_type() == 1 else _taken_of_cuda
        self.before = self._used()
        self.peak = 0

    def sample(self) -> int:
        """Look once; the peak so far, in bytes above what was in use before."""
        self.peak = max(self.peak, self._used() - self.before)
        return self.peak


def _taken_of_cuda() -> int:
    # TVM's one way to ask: "... 123 bytes free out of 456 bytes on device".
    told = str(tvm_ffi.get_global_func("runtime.GetCudaFreeMemory")())
    free, total = (int(number) for number in re.findall(r"\d+", told)[:2])
    return total - free


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
