"""The lowered graph as a straight line of kernel calls over named buffers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import tvm
from tvm import relax
from tvm import tirx as tir

from tbn_tvm.errors import TbnError
from tbn_tvm.micro.kernels import INSTEAD, Kernel, lower_kernel
from tbn_tvm.relay_passes._match import constant_array, is_call
from tbn_tvm.schedules.reference import TILED_PRODUCT


@dataclass(frozen=True)
class Buffer:
    """Memory with a lifetime: an input, an output, an intermediate value or a kernel's scratch.

    Attributes
    ----------
    name : str
        Unique in the program.
    nbytes, alignment : int
        Size and required alignment in bytes.
    first, last : int
        The first and last step at which the content matters; inputs start at -1, outputs end
        one past the last step.
    """

    name: str
    nbytes: int
    alignment: int
    first: int
    last: int


@dataclass(frozen=True)
class Constant:
    """Read-only data, kept in flash."""

    name: str
    data: np.ndarray
    comment: str


@dataclass(frozen=True)
class Step:
    """One kernel call.

    Attributes
    ----------
    kernel : str
        Name of the kernel.
    arguments : tuple of str
        Names of buffers and constants, in the kernel's order.
    product : bool
        Whether it computes the dot products of a tiled layer.
    """

    kernel: str
    arguments: tuple[str, ...]
    product: bool


@dataclass
class Program:
    """What bare metal executes.

    Attributes
    ----------
    kernels : list of Kernel
        Each once, in the order of first use.
    constants : list of Constant
        Weights and other data.
    buffers : list of Buffer
        All that the arena holds.
    steps : list of Step
        Kernel calls in order.
    inputs, outputs : list of str
        Names of buffers, in the model's order.
    """

    kernels: list[Kernel] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    def in_place_choices(self) -> list[tuple[str, str]]:
        """Results that a step may write over an operand that nobody reads later, each with it."""
        kernels = {kernel.name: kernel for kernel in self.kernels}
        buffers = {buffer.name: buffer for buffer in self.buffers}
        choices = []
        for index, step in enumerate(self.steps):
            pairs = set(kernels[step.kernel].in_place)
            for read, written in sorted(pairs):
                over, writer = (buffers.get(step.arguments[at]) for at in (read, written))
                if over is None or writer is None or over.nbytes != writer.nbytes:
                    continue
                # The same buffer may be several operands: each of them must allow it.
                places = [at for at, name in enumerate(step.arguments) if name == over.name]
                if over.last == index and all((at, written) in pairs for at in places):
                    choices.append((writer.name, over.name))
        return choices

    def results(self, index: int) -> list[tuple[str, str]]:
        """Name and dtype of what a step computes, its scratch memory excluded."""
        step = self.steps[index]
        kernel = next(kernel for kernel in self.kernels if kernel.name == step.kernel)
        return [
            (name, parameter.dtype)
            for name, parameter in zip(step.arguments, kernel.parameters, strict=True)
            if name.startswith(f"step{index}_") and not name.startswith(f"step{index}_scratch")
        ]


def extract_program(mod: tvm.IRModule, name: str) -> Program:
    """Read a program off a lowered module.

    Parameters
    ----------
    mod : tvm.IRModule
        After the bare-metal phase: ``main`` calls PrimFuncs with ``call_tir``; all shapes are
        numbers.
    name : str
        The model's name, which prefixes C identifiers.

    Raises
    ------
    TbnError
        For an operator with no kernel, or a dynamic shape.
    """
    return _Extractor(mod, name).extract()


def _as_c(func: tir.PrimFunc, operator: str, name: str) -> Kernel:
    """A kernel, or one readable error that names the operator where TVM refuses it."""
    try:
        return lower_kernel(func, name)
    except TbnError:
        raise
    except Exception as error:  # TVM's own are of any kind, but carry this
        if not hasattr(error, "__tvm_ffi_error__"):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TbnError(
            f"{operator} has no kernel for bare metal ({reason}): expected loops over arrays; "
            f"{INSTEAD}"
        ) from error


class _Extractor:
    def __init__(self, mod: tvm.IRModule, name: str) -> None:
        self.mod, self.prefix = mod, name
        self.program = Program()
        self._kernels: dict[str, Kernel] = {}
        self._constants: dict[tuple, str] = {}
        # What a graph variable stands for: a buffer's name, or a tuple of such.
        self._values: dict[relax.Var, str | tuple] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._first: dict[str, int] = {}
        self._last: dict[str, int] = {}

    def extract(self) -> Program:
        main = self.mod["main"]
        for param in main.params:
            buffer = f"input_{param.name}"
            self._values[param] = buffer
            self._define(buffer, param.ty, -1)
            self.program.inputs.append(buffer)
        for block in main.body.blocks:
            for binding in block.bindings:
                self._bind(binding)
        result = self._value(main.body.body)
        self.program.outputs = list(result) if isinstance(result, tuple) else [result]
        for buffer in self.program.outputs:
            if buffer not in self._sizes:
                raise TbnError(
                    "an output of the model does not depend on its inputs, and a board's program "
                    "has no step that computes it: remove it from the model's outputs"
                )
            self._last[buffer] = len(self.program.steps)
        for buffer, (nbytes, alignment) in self._sizes.items():
            first = self._first[buffer]
            last = max(first, self._last.get(buffer, first))
            self.program.buffers.append(Buffer(buffer, nbytes, alignment, first, last))
        return self.program

    def _bind(self, binding: relax.Binding) -> None:
        value = binding.value
        if isinstance(value, relax.Call) and is_call(value, "relax.call_tir"):
            self._values[binding.var] = self._call(value)
        elif is_call(value, "relax.reshape") or is_call(value, "relax.memory.view"):
            # Buffers are contiguous, so another shape is another name.
            self._values[binding.var] = self._value(value.args[0])
        elif isinstance(value, (relax.Var, relax.Tuple, relax.TupleGetItem)) or isinstance(
            binding, relax.MatchCast
        ):
            self._values[binding.var] = self._value(value)
        elif constant_array(value) is not None:
            self._values[binding.var] = self._constant(constant_array(value), "constant")
        else:
            called = getattr(value, "op", None)
            what = getattr(called, "name", None) or getattr(
                called, "global_symbol", type(value).__name__
            )
            raise TbnError(
                f"{what} has no kernel for bare metal: expected operators that TVM lowers to "
                f"loops; {INSTEAD}"
            )

    def _value(self, expr: relax.Expr):
        if isinstance(expr, relax.Tuple):
            return tuple(self._value(item) for item in expr.fields)
        if isinstance(expr, relax.TupleGetItem):
            return self._value(expr.tuple_value)[expr.index]
        array = constant_array(expr)
        if array is not None:
            return self._constant(array, "constant")
        return self._values[expr]

    def _call(self, call: relax.Call) -> str | tuple:
        func_name, arguments = call.args[0].name_hint, call.args[1].fields
        step = len(self.program.steps)
        kernel = self._kernel(func_name)
        operands = []
        for argument in arguments:
            array = constant_array(argument)
            operand = (
                self._constant(array, func_name) if array is not None else self._value(argument)
            )
            if operand in self._sizes:
                self._last[operand] = step
            operands.append(operand)
        results = (
            list(call.ty_args[0].fields)
            if isinstance(call.ty_args[0], relax.TupleType)
            else [call.ty_args[0]]
        )
        made = []
        for index, result in enumerate(results):
            buffer = f"step{step}_{func_name}" + (f"_{index}" if len(results) > 1 else "")
            self._define(buffer, result, step)
            made.append(buffer)
        for index, (nbytes, alignment) in enumerate(kernel.scratch):
            buffer = f"step{step}_scratch{index}"
            self._sizes[buffer] = (nbytes, alignment)
            self._first[buffer] = self._last[buffer] = step
            made.append(buffer)
        product = TILED_PRODUCT in self.mod[func_name].attrs
        self.program.steps.append(Step(kernel.name, (*operands, *made), product))
        return made[0] if len(results) == 1 else tuple(made[: len(results)])

    def _kernel(self, func_name: str) -> Kernel:
        if func_name not in self._kernels:
            kernel = _as_c(self.mod[func_name], func_name, f"{self.prefix}_{func_name}")
            self._kernels[func_name] = kernel
            self.program.kernels.append(kernel)
        return self._kernels[func_name]

    def _constant(self, array: np.ndarray, user: str) -> str:
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            name = f"{self.prefix}_weights_{len(self._constants)}"
            shape = "x".join(map(str, array.shape)) or "scalar"
            self._constants[key] = name
            self.program.constants.append(
                Constant(name, array.reshape(-1), f"{array.dtype} {shape}, read by {user}")
            )
        return self._constants[key]

    def _define(self, name: str, tensor: relax.TensorType, step: int) -> None:
        extents = list(tensor.shape.values)
        if not all(isinstance(extent, tir.IntImm) for extent in extents):
            raise TbnError(f"{name} has the dynamic shape {tensor.shape}: bare metal needs numbers")
        itemsize = np.dtype(str(tensor.dtype)).itemsize
        nbytes = math.prod(int(extent) for extent in extents) * itemsize
        self._sizes[name] = (nbytes, max(4, itemsize))
        self._first[name] = step
