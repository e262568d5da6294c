"""PrimFuncs to plain C functions: pointers in, nothing else needed.

TVM's C code generation writes the bodies. Signatures are ours: operands that are only read are
``const``, none alias (the planner sees to it, or says otherwise), and large local arrays become
parameters, so that the arena holds them and the stack does not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import tvm
import tvm_ffi
from tvm import ir, s_tir
from tvm import tirx as tir
from tvm.ir import PointerType, PrimType

from tbn_tvm.errors import TbnError
from tbn_tvm.micro.in_place import in_place_pairs

STACK_ARRAY_BYTES = 64
"""Local arrays up to this size stay on the stack, where compilers keep them in registers."""

INSTEAD = (
    "leave it out of the model and compute it in the application, or compile for a CPU "
    "(--target llvm)"
)
"""What to do about an operator that has no kernel."""

_C_TYPES = {
    "float32": "float",
    "float64": "double",
    "int8": "int8_t",
    "uint8": "uint8_t",
    "int16": "int16_t",
    "uint16": "uint16_t",
    "int32": "int32_t",
    "uint32": "uint32_t",
    "int64": "int64_t",
    "uint64": "uint64_t",
    "bool": "int8_t",
}

_WORDS = """
    alignas alignof and asm auto bitand bitor bool break case catch char class compl const constexpr
    continue decltype default delete do double dynamic_cast else enum explicit export extern false
    float for friend goto if inline int long mutable namespace new noexcept not nullptr operator or
    private protected public register reinterpret_cast restrict return short signed sizeof static
    static_assert static_cast struct switch template this thread_local throw true try typedef typeid
    typename union unsigned using virtual void volatile wchar_t while xor
"""
_RESERVED = frozenset(_WORDS.split())


@dataclass(frozen=True)
class Parameter:
    """A pointer parameter of a kernel."""

    name: str
    dtype: str
    written: bool
    shared: bool = False

    @property
    def declaration(self) -> str:
        """In C; without ``restrict`` where another parameter may point to the same memory."""
        const = "" if self.written else "const "
        restrict = "" if self.shared else "TBN_RESTRICT "
        return f"{const}{c_type(self.dtype)} *{restrict}{self.name}"


@dataclass(frozen=True)
class Kernel:
    """A C function.

    Attributes
    ----------
    name : str
        Of the function.
    parameters : tuple of Parameter
        Operands, results, then scratch.
    scratch : tuple of (int, int)
        Bytes and alignment of each trailing scratch parameter.
    body : str
        C source between the braces.
    in_place : tuple of (int, int)
        Positions of an operand and of a result that may be written over it.
    """

    name: str
    parameters: tuple[Parameter, ...]
    scratch: tuple[tuple[int, int], ...]
    body: str
    in_place: tuple[tuple[int, int], ...] = ()

    def sharing(self, pairs: Iterable[tuple[int, int]]) -> Kernel:
        """The kernel for calls where each of some pairs of parameters is one buffer."""
        shared = {position for pair in pairs for position in pair}
        parameters = tuple(
            replace(parameter, shared=True) if position in shared else parameter
            for position, parameter in enumerate(self.parameters)
        )
        return replace(self, parameters=parameters)


def c_name(name: str) -> str:
    """A name for a variable or a member, which no word of C or C++ may be."""
    return f"{name}_" if name in _RESERVED else name


def c_type(dtype: str) -> str:
    """The C99 name of an element type.

    Raises
    ------
    TbnError
        For a type that portable C lacks.
    """
    if dtype not in _C_TYPES:
        raise TbnError(
            f"element type {dtype} does not exist in portable C: convert the model to float32"
        )
    return _C_TYPES[dtype]


def lower_kernel(func: tir.PrimFunc, name: str) -> Kernel:
    """Lower a scheduled PrimFunc over static buffers to C.

    Parameters
    ----------
    func : tvm.tirx.PrimFunc
        Its parameters are buffers.
    name : str
        Of the C function.

    Raises
    ------
    TbnError
        For a statement, an element type or a call that portable C lacks.
    """
    func = lower_loops()(tvm.IRModule({"main": _without_offsets(func)}))["main"]
    _refuse_what_c_lacks(func.body, name)
    editor = _ScratchLifter()
    body = editor.visit(func.body)
    written = editor.written
    parameters, pointers, declarations = [], [], []
    for buffer in [*func.params, *editor.lifted]:
        dtype = str(buffer.dtype)
        pointer = tir.Var(c_name(buffer.name), PointerType(PrimType(dtype), "global"))
        pointers.append(pointer)
        declarations.append(tir.DeclBuffer(buffer, data=pointer))
        parameters.append((pointer, dtype, buffer in written))
    pointer_func = tir.PrimFunc(pointers, tir.SeqStmt([*declarations, body])).with_attr(
        {
            "calling_conv": 0,
            "global_symbol": name,
            "tirx.noalias": True,
            "target": _target(),
        }
    )
    module = tvm.IRModule({name: pointer_func})
    module = tir.transform.LowerIntrin()(tir.transform.LowerTVMBuiltin()(module))
    names, text = _generate(module, name)
    return Kernel(
        name,
        tuple(
            Parameter(c_name, dtype, is_written)
            for c_name, (_, dtype, is_written) in zip(names, parameters, strict=True)
        ),
        tuple(_scratch_size(buffer) for buffer in editor.lifted),
        text,
        in_place_pairs(body, list(func.params)),
    )


def _without_offsets(func: tir.PrimFunc) -> tir.PrimFunc:
    """Parameters begin at their pointers: some of TVM's operators leave that open, for its run time
    to say."""
    zeros = {
        buffer.elem_offset: tir.const(0, buffer.elem_offset.ty.dtype)
        for buffer in func.params
        if isinstance(buffer.elem_offset, ir.Var)
    }
    if not zeros:
        return func
    return tvm_ffi.structural_map(func, (ir.Var, lambda variable: zeros.get(variable, variable)))


def _refuse_what_c_lacks(body: tir.Stmt, name: str) -> None:
    called: list[str] = []
    recast = False

    def note(node) -> None:
        nonlocal recast
        called_name = getattr(node.op, "name", "") if isinstance(node, ir.Call) else ""
        if "call_packed" in called_name:
            called.append(str(node.args[0]).strip('"'))
        recast |= called_name == "tirx.reinterpret"

    tvm_ffi.structural_walk(body, note)
    if recast:
        raise TbnError(
            f"{name} has no kernel for bare metal (it reads bits as another type, which TVM writes "
            f"in a way that C leaves open); {INSTEAD}"
        )
    if called:
        raise TbnError(
            f"{name} has no kernel for bare metal (it calls {called[0]}, which only TVM's run-time "
            f"library has): expected loops over arrays; {INSTEAD}"
        )


@functools.cache
def _target() -> tvm.target.Target:
    return tvm.target.Target({"kind": "c"})


def _absolute(call: tir.Call) -> tir.Call:
    name = "fabsf" if str(call.ty.dtype) == "float32" else "fabs"
    return tir.call_pure_extern(str(call.ty.dtype), name, call.args[0])


# TVM has C names for all its mathematical functions but this one.
tir.register_intrin_lowering("tirx.fabs", target="c", f=_absolute)


def lower_loops() -> tvm.transform.Pass:
    """Blocks to loops over flat buffers, as TVM's own pipeline does, without its packed calls."""
    s, t = s_tir.transform, tir.transform
    return tvm.transform.Sequential(
        [
            s.CanonicalizeLoop(),
            s.LowerInitBlock(),
            s.PlanAndUpdateBufferAllocationLocation(),
            s.ConvertBlocksToOpaque(),
            s.CompactBufferAllocation(),
            s.LowerMatchBuffer(),
            s.StmtSimplify(),
            s.LowerOpaqueBlock(),
            t.FlattenBuffer(),
            t.NarrowDataType(32),
            t.VectorizeLoop(False),
            t.StorageRewrite(),
            t.UnrollLoop(),
            t.StmtSimplify(),
            t.RemoveNoOp(),
            s.RewriteUnsafeSelect(),
            t.CommonSubexprElim(),
        ]
    )


def _generate(module: tvm.IRModule, name: str) -> tuple[list[str], str]:
    """Parameter names and body of the one function in what TVM prints.

    The printed preamble declares TVM's run time, which bare metal has not: the function is cut out
    at its definition, and anything unexpected in its shape is an error.
    """
    source = tvm_ffi.get_global_func("target.build.c")(module, _target()).inspect_source()
    _, found, definition = source.rpartition(f"TVM_DLL void {name}(")
    signature, opened, rest = definition.partition(") {\n")
    body, closed, _ = rest.rpartition("}")
    if not (found and opened and closed):
        raise TbnError(f"TVM's C code for {name} has an unknown form; is its version supported?")
    names = [part.split()[-1].lstrip("*") for part in signature.split(",")]
    # Before each while loop TVM writes a pragma that only some compilers know.
    lines = [line for line in body.rstrip().splitlines() if not line.lstrip().startswith("#pragma")]
    return names, "\n".join(lines) + "\n"


def _scratch_size(buffer) -> tuple[int, int]:
    itemsize = np.dtype(str(buffer.dtype)).itemsize
    return math.prod(int(extent) for extent in buffer.shape) * itemsize, max(4, itemsize)


class _ScratchLifter:
    """Removes large allocations from a body, and notes which buffers are written.

    Attributes
    ----------
    lifted : list of buffers
        The allocations taken out.
    written : set of buffers
        The targets of stores.
    """

    def __init__(self) -> None:
        self.lifted: list = []
        self.written: set = set()
        self._viewed: dict = {}

    def visit(self, stmt: tir.Stmt) -> tir.Stmt:
        """The statement without its large allocations."""
        if isinstance(stmt, tir.SeqStmt):
            return tir.stmt_seq(*(self.visit(part) for part in stmt.seq))
        if isinstance(stmt, tir.For):
            return tir.For(
                stmt.loop_var,
                stmt.min,
                stmt.extent,
                tir.ForKind.SERIAL,
                self.visit(stmt.body),
            )
        if isinstance(stmt, tir.While):
            return tir.While(stmt.condition, self.visit(stmt.body))
        if isinstance(stmt, tir.IfThenElse):
            otherwise = None if stmt.else_case is None else self.visit(stmt.else_case)
            return tir.IfThenElse(stmt.condition, self.visit(stmt.then_case), otherwise)
        if isinstance(stmt, tir.AttrStmt):
            return tir.AttrStmt(stmt.node, stmt.attr_key, stmt.value, self.visit(stmt.body))
        if isinstance(stmt, tir.AllocBuffer):
            # TVM would have its run time ask a device for what has a scope of its own.
            small = _scratch_size(stmt.buffer)[0] <= STACK_ARRAY_BYTES
            if small and stmt.buffer.scope() == "global":
                return stmt
            self.lifted.append(stmt.buffer)
            self.written.add(stmt.buffer)
            return tir.Evaluate(0)
        if isinstance(stmt, tir.DeclBuffer):
            # A view: stores to it are stores to the buffer whose pointer it takes.
            (source,) = stmt.data.args
            self._viewed[stmt.buffer] = self._viewed.get(source, source)
            return stmt
        if isinstance(stmt, tir.BufferStore):
            self.written.add(self._viewed.get(stmt.buffer, stmt.buffer))
            return stmt
        if isinstance(stmt, (tir.Evaluate, tir.Bind)):
            return stmt
        raise TbnError(f"the statement {type(stmt).__name__} has no form in bare-metal C")
