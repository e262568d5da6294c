"""Which results of a kernel may be written over which of its operands.

Only where the loops show it: one statement writes the result, each element at most once, nothing
reads the result, and each read of the operand is either of the element that the same iteration then
writes, or in loops that have ended before the writing ones begin. Anything less plain is answered
with no.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tvm_ffi
from tvm import ir, sym
from tvm import tirx as tir


def in_place_pairs(body: tir.Stmt, buffers: Sequence) -> tuple[tuple[int, int], ...]:
    """Find the operands whose memory a result may take.

    Parameters
    ----------
    body : tir.Stmt
        Of a kernel, after :func:`tbn_tvm.micro.kernels.lower_loops`.
    buffers : sequence of Buffer
        Its operands and results.

    Returns
    -------
    tuple of (int, int)
        Positions of operand and result.
    """
    accesses = _Accesses()
    if not accesses.visit(body):
        return ()
    pairs = []
    for written, result in enumerate(buffers):
        store = accesses.single_store(result)
        if store is None:
            continue
        for read, operand in enumerate(buffers):
            if (
                operand is not result
                and _alike(operand, result)
                and accesses.follows(store, operand)
            ):
                pairs.append((read, written))
    return tuple(pairs)


def _alike(a, b) -> bool:
    return str(a.dtype) == str(b.dtype) and _count(a) == _count(b)


def _count(buffer) -> int:
    return math.prod(int(extent) for extent in buffer.shape)


class _Access:
    """A load or a store, and the loops around it."""

    def __init__(self, buffer, index, loops: tuple) -> None:
        self.buffer, self.index, self.loops = buffer, index, loops


def _apart(a: _Access, b: _Access) -> bool:
    """Whether no loop is around both: then the first is over when the second begins."""
    return not any(outer is other for outer in a.loops for other in b.loops)


def _together(a: _Access, b: _Access) -> bool:
    """Whether each iteration accesses the same element in both."""
    return (
        len(a.loops) == len(b.loops)
        and all(one is other for one, other in zip(a.loops, b.loops, strict=True))
        and a.index is not None
        and sym.Analyzer().can_prove_equal(a.index, b.index)
    )


class _Accesses:
    """The loads and stores of a body, in their order.

    Attributes
    ----------
    loads, stores : list of (int, _Access)
        With the position in the order of execution; a statement's loads come before its store.
    opaque : set of buffers
        Of which something else is done.
    """

    def __init__(self) -> None:
        self.loads: list[tuple[int, _Access]] = []
        self.stores: list[tuple[int, _Access]] = []
        self.opaque: set = set()
        self._loops: list = []
        self._viewed: dict = {}
        self._bound: dict = {}
        self._time = 0

    def visit(self, stmt: tir.Stmt) -> bool:
        """Take a statement in; whether its kind is known."""
        self._time += 1
        if isinstance(stmt, tir.SeqStmt):
            return all(self.visit(part) for part in stmt.seq)
        if isinstance(stmt, tir.For):
            self._read(stmt.min, stmt.extent)
            self._loops.append(stmt)
            known = self.visit(stmt.body)
            self._loops.pop()
            return known
        if isinstance(stmt, tir.IfThenElse):
            self._read(stmt.condition)
            branches = [stmt.then_case]
            if stmt.else_case is not None:
                branches.append(stmt.else_case)
            return all(self.visit(branch) for branch in branches)
        if isinstance(stmt, tir.AttrStmt):
            return self.visit(stmt.body)
        if isinstance(stmt, tir.AllocBuffer):
            return True
        if isinstance(stmt, tir.DeclBuffer):
            self._view(stmt)
            return True
        if isinstance(stmt, tir.BufferStore):
            self._read(stmt.value, *stmt.indices)
            self._time += 1
            self.stores.append((self._time, self._access(stmt.buffer, stmt.indices)))
            return True
        if isinstance(stmt, tir.Bind):
            self._read(stmt.value)
            self._bound[stmt.var] = stmt.value
            return True
        if isinstance(stmt, tir.Evaluate):
            self._read(stmt.value)
            return True
        return False

    def single_store(self, buffer) -> _Access | None:
        """The one store to a buffer that is never read, if it writes each element once at most."""
        stores = [(time, a) for time, a in self.stores if a.buffer.same_as(buffer)]
        if len(stores) != 1 or buffer in self.opaque:
            return None
        if any(access.buffer.same_as(buffer) for _, access in self.loads):
            return None
        store = stores[0]
        return store if self._distinct(store[1]) else None

    def follows(self, store: tuple[int, _Access], operand) -> bool:
        """Whether a store only ever writes over elements of an operand that were read before."""
        when, written = store
        if operand in self.opaque or any(a.buffer.same_as(operand) for _, a in self.stores):
            return False
        return all(
            time < when and (_apart(access, written) or _together(access, written))
            for time, access in self.loads
            if access.buffer.same_as(operand)
        )

    def _distinct(self, access: _Access) -> bool:
        """Whether an access's index differs between any two iterations of the loops around it."""
        if access.index is None:
            return False
        loops = [(loop.loop_var, loop.extent) for loop in access.loops]
        if not all(isinstance(extent, tir.IntImm) for _, extent in loops):
            return False
        terms = sym.detect_linear_equation(access.index, [variable for variable, _ in loops])
        if len(terms) != len(loops) + 1 or not all(isinstance(c, tir.IntImm) for c in terms):
            return False
        reach = 0  # of the loops with smaller strides
        strides = sorted((abs(int(c)), int(n)) for c, (_, n) in zip(terms, loops, strict=False))
        for stride, extent in strides:
            if extent > 1 and stride <= reach:
                return False
            reach += stride * (extent - 1)
        return True

    def _view(self, declared: tir.DeclBuffer) -> None:
        """Another name for a whole buffer; anything else makes what it is of opaque."""
        source = declared.data.args[0]
        if isinstance(source, ir.Var):
            source = self._viewed.get(source, source)
            offset = declared.buffer.elem_offset
            if isinstance(offset, tir.IntImm) and int(offset) == 0:
                self._viewed[declared.buffer] = source
                if not _alike(declared.buffer, source):
                    self.opaque.add(source)
                return
        for variable in _variables(declared.data):
            self.opaque.add(self._viewed.get(variable, variable))

    def _access(self, buffer, indices) -> _Access:
        index = self._expanded(indices[0]) if len(indices) == 1 else None
        return _Access(self._viewed.get(buffer, buffer), index, tuple(self._loops))

    def _expanded(self, index):
        """An index in terms of loop variables."""
        for _ in range(len(self._bound) + 1):
            found = {v: self._bound[v] for v in _variables(index) if v in self._bound}
            if not found:
                return index
            index = _substituted(index, found)
        return index

    def _read(self, *expressions) -> None:
        """Note the loads in expressions, and whatever else they do with buffers."""
        self._time += 1
        for expression in expressions:
            named: dict = {}
            loaded: dict = {}
            addressed: list = []

            def note(node, named=named, loaded=loaded, addressed=addressed) -> None:
                if isinstance(node, ir.TensorLoad):
                    loaded[node.source] = loaded.get(node.source, 0) + 1
                    self.loads.append((self._time, self._access(node.source, node.indices)))
                elif isinstance(node, ir.Var):
                    named[node] = named.get(node, 0) + 1
                elif isinstance(node, ir.Call) and _takes_address(node):
                    addressed.append(node)

            tvm_ffi.structural_walk(expression, note)
            for buffer, count in named.items():
                if count != loaded.get(buffer, 0):
                    self.opaque.add(self._viewed.get(buffer, buffer))
            if addressed:
                self.opaque |= {self._viewed.get(buffer, buffer) for buffer in loaded}


def _takes_address(call: ir.Call) -> bool:
    name = getattr(call.op, "name", "")
    return any(part in name for part in ("address_of", "access_ptr", "extern", "packed"))


def _variables(expression) -> list:
    found: list = []
    tvm_ffi.structural_walk(
        expression, lambda node: found.append(node) if isinstance(node, ir.Var) else None
    )
    return found


def _substituted(expression, values: dict):
    return tvm_ffi.structural_map(
        expression, (ir.Var, lambda variable: values.get(variable, variable))
    )
