"""The most stack a firmware can take, before it runs.

A function's frame is what the compiler says it is (``-fstack-usage``), or, for library functions,
which come compiled, what its machine code makes of the stack pointer on its deepest path; where
both are known the larger counts. Calls, also those in tail position, are read off the machine code,
each with the depth it happens at. The bound is the largest sum from an entry down. A caller
further out pays nothing for a call itself: the return address is in a register, and part of the
frame once it is saved.

What would make a sum meaningless is refused: recursion, calls through pointers, frames whose size
is only known at run time. Jump tables of ``switch`` are no such calls: all of the function's code
is taken to be reachable from them.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tbn_tvm.errors import ToolError
from tbn_tvm.micro.disassembly import Instruction, disassemble
from tbn_tvm.targets import Board

EXCEPTION_BYTES = 32
"""What the core stacks when it enters an exception: eight registers (Armv7-M ARM, B1.5.6)."""

EXCEPTION_FPU_BYTES = 104
"""The same with the floating-point registers, whose room is taken even if they are not saved."""

EXCEPTION_PADDING = 4
"""Of an exception that comes while the stack is aligned to four bytes only."""

_SYSTEM_EXCEPTIONS = 15
"""Vectors from here on are interrupts; those between reset and here are faults and services."""


@dataclass(frozen=True)
class StackReport:
    """Bounds in bytes.

    Attributes
    ----------
    model : int
        One inference: the model's run function and all it calls.
    total : int
        The firmware without faults: from reset, with an interrupt at the deepest point.
    with_fault : int
        The same with a fault at the deepest point of all, until it is reported.
    model_path, total_path : tuple of (str, int)
        Functions of the deepest path, each with the stack it has taken when it calls the next.
    """

    model: int
    total: int
    with_fault: int
    model_path: tuple[tuple[str, int], ...]
    total_path: tuple[tuple[str, int], ...]

    def to_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


def stack_report(elf: Path, usage: dict[str, Usage], board: Board, run: str) -> StackReport:
    """Bound the stack of a firmware.

    Parameters
    ----------
    elf : Path
        The firmware, with its symbols.
    usage : dict
        Of :func:`read_usage`.
    board : Board
        What it is for.
    run : str
        Name of the model's run function.

    Raises
    ------
    ToolError
        For recursion, a call through a pointer, or a frame of no constant size; the message names
        the function.
    """
    image = _Image.read(elf)
    graph = CallGraph(disassemble(elf), image.functions, usage)
    model = graph.bound(image.address(run))
    reset = graph.bound(image.vectors[1])
    fpu = board.features & {"fpu", "mve"}
    entry = (EXCEPTION_FPU_BYTES if fpu else EXCEPTION_BYTES) + EXCEPTION_PADDING
    # All of one priority: none interrupts another.
    interrupts = [graph.bound(at).nbytes for at in image.vectors[_SYSTEM_EXCEPTIONS:] if at]
    faults = [graph.bound(at).nbytes for at in image.vectors[2:_SYSTEM_EXCEPTIONS] if at]
    total = reset.nbytes + (entry + max(interrupts) if interrupts else 0)
    with_fault = total + (entry + max(faults) if faults else 0)
    return StackReport(model.nbytes, total, with_fault, model.path, reset.path)


@dataclass(frozen=True)
class Usage:
    """What the compiler says of a function.

    Attributes
    ----------
    nbytes : int
        Its frame; of several functions of one name, the largest.
    static : bool
        Whether that is all it can ever take.
    """

    nbytes: int
    static: bool


def read_usage(folder: Path) -> dict[str, Usage]:
    """The frames in the ``.su`` files of a folder, by function.

    Raises
    ------
    ToolError
        Where a file is not of the form that GCC writes.
    """
    found: dict[str, Usage] = {}
    for path in sorted(folder.glob("*.su")):
        for line in path.read_text().splitlines():
            try:
                where, size, kind = line.split("\t")
                name, nbytes = where.rsplit(":", 1)[1], int(size)
            except ValueError:
                raise ToolError(f"{path}: not what -fstack-usage writes: {line!r}") from None
            known = found.get(name, Usage(0, True))
            # "dynamic,bounded" has a greatest size, which is the one given.
            static = known.static and kind != "dynamic"
            found[name] = Usage(max(known.nbytes, nbytes), static)
    return found


@dataclass(frozen=True)
class Bound:
    """The most stack below an entry, and the path that takes it."""

    nbytes: int
    path: tuple[tuple[str, int], ...]
    returns: bool


@dataclass
class _Function:
    """A function's code as far as it is known.

    Attributes
    ----------
    deepest : int
        Of the stack pointer below its value at entry.
    calls : dict of int to int
        Depth by address of the called function.
    returns : bool
        Whether any path comes back.
    """

    deepest: int = 0
    calls: dict[int, int] = field(default_factory=dict)
    returns: bool = False


class CallGraph:
    """Functions, their frames and their calls, from machine code.

    Parameters
    ----------
    instructions : iterable of Instruction
        All of the firmware.
    functions : dict of int to (str, int)
        Names and sizes by address.
    usage : dict of str to Usage
        What the compiler says.
    """

    def __init__(self, instructions, functions, usage: dict[str, Usage]) -> None:
        self._code = {instruction.address: instruction for instruction in instructions}
        self._functions = functions
        self._usage = usage
        self._bounds: dict[int, Bound] = {}
        self._open: list[int] = []

    def name(self, address: int) -> str:
        """Of the function at an address."""
        return self._functions.get(address, (f"code at {address:#x}", 0))[0]

    def bound(self, address: int) -> Bound:
        """The most stack that a call of a function takes."""
        if address in self._bounds:
            return self._bounds[address]
        if address in self._open:
            cycle = [*self._open[self._open.index(address) :], address]
            raise ToolError(
                "the stack has no bound: recursion through "
                + " -> ".join(self.name(function) for function in cycle)
            )
        self._open.append(address)
        try:
            self._bounds[address] = bound = self._deepest_path(address)
        finally:
            self._open.pop()
        return bound

    def _deepest_path(self, address: int) -> Bound:
        name = self.name(address)
        usage = self._usage.get(re.sub(r"\.\d+$", "", name))
        if usage is not None and not usage.static:
            raise ToolError(
                f"the stack has no bound: {name} takes an amount that is only known at run time "
                "(alloca, or an array of variable length)"
            )
        function = self._walk(address, None if usage is None else usage.nbytes)
        deepest, path = function.deepest, ()
        if usage is not None:
            deepest = max(deepest, usage.nbytes)
        own = deepest
        for called, depth in function.calls.items():
            below = self.bound(called)
            if depth + below.nbytes >= deepest:
                deepest, own, path = depth + below.nbytes, depth, below.path
        return Bound(deepest, ((name, own), *path), function.returns)

    def _walk(self, entry: int, known: int | None) -> _Function:
        """Follow every path from an entry, with the stack's depth on it.

        Parameters
        ----------
        entry : int
            Address.
        known : int or None
            The frame's size by the compiler.
        """
        function = _Function()
        _name, size = self._functions.get(entry, ("", 0))
        depths: dict[int, int] = {}
        visits: dict[int, int] = {}
        pending = [(entry, 0)]
        switched: int | None = None
        guessing = False
        while pending or switched is not None:
            if not pending:
                # Wherever a jump table may lead: to all that is left of the function.
                pending = [
                    (at, switched)
                    for at in range(entry, entry + size, 2)
                    if at in self._code and at not in depths
                ]
                switched, guessing = None, True
                continue
            at, depth = pending.pop()
            if at != entry and at in self._functions:
                self._call(function, at, depth)  # in tail position, or falling through
                function.returns |= self.bound(at).returns
                continue
            if depths.get(at, -1) >= depth:
                continue
            visits[at] = visits.get(at, 0) + 1
            if at not in self._code or visits[at] > _MOST_VISITS:
                what = "runs into data" if at not in self._code else "moves it in a loop"
                raise ToolError(
                    f"the stack pointer of {self.name(entry)} cannot be followed: it {what} at "
                    f"{at:#x}"
                )
            depths[at] = depth
            step = _step(self._code[at])
            if step.pointer:
                raise ToolError(
                    f"the stack has no bound: {self.name(entry)} calls through a pointer at "
                    f"{at:#x}: {self._code[at].mnemonic} {self._code[at].operands}"
                )
            if step.change is None:
                if known is None:
                    raise ToolError(
                        f"the stack has no bound: {self.name(entry)} moves the stack pointer at "
                        f"{at:#x} by an amount that its code does not tell, and the compiler said "
                        "nothing of it"
                    )
                depth = known
            else:
                depth += step.change
            function.deepest = max(function.deepest, depth)
            function.returns |= step.returns
            goes_on = step.goes_on
            if step.called is not None:
                switch = _SWITCH_HELPER.match(self.name(step.called)) is not None
                self._call(function, step.called, depth)
                goes_on = goes_on and not switch and self.bound(step.called).returns
                if switch:
                    switched = max(depth, switched or 0)
            if step.switch:
                switched = max(depth, switched or 0)
            if step.target is not None:
                pending.append((step.target, depth))
            follows = at + self._code[at].size
            # Where padding was taken for code, what follows may be data, or another function.
            if goes_on and not (
                guessing and (follows >= entry + size or follows not in self._code)
            ):
                pending.append((follows, depth))
        return function

    def _call(self, function: _Function, address: int, depth: int) -> None:
        function.calls[address] = max(depth, function.calls.get(address, 0))
        self.bound(address)


_MOST_VISITS = 64
"""Of one instruction, each deeper than the last: more means that a loop moves the stack pointer."""

_SWITCH_HELPER = re.compile(r"__gnu_thumb1_case_")
"""Jumps behind its call, by the table there."""

_CONDITION = r"(?:eq|ne|cs|hs|cc|lo|mi|pl|vs|vc|hi|ls|ge|lt|gt|le)"
_CALL = re.compile(rf"bl({_CONDITION})?")
_POINTER_CALL = re.compile(rf"blxn?s?({_CONDITION})?")
_EXCHANGE = re.compile(rf"bx({_CONDITION})?")
_BRANCH = re.compile(rf"b({_CONDITION})?")
_MAYBE_BRANCH = re.compile(r"cbn?z|le|letp|wls|wlstp")
_TABLE = re.compile(r"tb[bh]")
_PUSH = re.compile(r"v?push|v?stmdb")
_POP = re.compile(rf"(v?pop|v?ldmia|ldm)({_CONDITION})?")
_TARGET = re.compile(r"([0-9a-f]+) <")
_LIST = re.compile(r"\{(.*)\}")
_SP = r"sp(?:, sp)?"


@dataclass(frozen=True)
class _Step:
    """What an instruction does to control and to the stack pointer.

    Attributes
    ----------
    change : int or None
        Bytes that the stack grows by; None where they cannot be read off.
    goes_on, returns, switch, pointer : bool
        Whether the next instruction may follow; whether the function may end here; whether a jump
        table follows; whether it goes through a pointer.
    target, called : int or None
        Where it may jump to; what it calls.
    """

    change: int | None = 0
    goes_on: bool = True
    returns: bool = False
    switch: bool = False
    pointer: bool = False
    target: int | None = None
    called: int | None = None


def _step(instruction: Instruction) -> _Step:
    name = instruction.mnemonic.removesuffix(".n").removesuffix(".w").partition(".")[0]
    operands = instruction.operands
    if _MAYBE_BRANCH.fullmatch(name) or _BRANCH.fullmatch(name):
        return _Step(target=_target(operands), goes_on=name != "b")
    if _CALL.fullmatch(name):
        return _Step(called=_target(operands))
    if _POINTER_CALL.fullmatch(name):
        return _Step(pointer=True)
    if _EXCHANGE.fullmatch(name):
        back = operands == "lr"
        return _Step(pointer=not back, returns=back, goes_on=name != "bx")
    if _TABLE.fullmatch(name):
        return _Step(switch=True, goes_on=False)
    if name == "udf":
        return _Step(goes_on=False)
    first = operands.partition(",")[0].rstrip("!")
    if first == "pc" or (name == "add" and first == "pc"):
        if operands == "pc, lr":
            return _Step(returns=True, goes_on=False)
        if name == "ldr" and operands.startswith("pc, [sp"):
            return _Step(returns=True, goes_on=False)
        return _Step(switch=True, goes_on=False)
    stacked = operands.startswith("{") or operands.startswith("sp!")
    if _PUSH.fullmatch(name) and stacked:
        return _Step(_list_bytes(operands))
    if (popped := _POP.fullmatch(name)) and stacked:
        back = re.search(r"\bpc\b", operands) is not None
        goes_on = not back or popped.group(2) is not None
        # On the path that goes on behind a conditional return nothing was taken off.
        change = 0 if back else -_list_bytes(operands)
        return _Step(change, goes_on=goes_on, returns=back)
    return _Step(_adjustment(name, operands, first))


def _adjustment(name: str, operands: str, first: str) -> int | None:
    """What any other instruction adds to the stack's depth."""
    if moved := re.fullmatch(rf"{_SP}, #(\d+)", operands):
        if name in ("sub", "subw", "subs"):
            return int(moved.group(1))
        if name in ("add", "addw", "adds"):
            return -int(moved.group(1))
    if moved := re.search(r"\[sp, #(-?\d+)\]!$", operands):
        return -int(moved.group(1))
    if moved := re.search(r"\[sp\], #(-?\d+)$", operands):
        return -int(moved.group(1))
    if re.match(r"v?(ldm|stm)", name) and operands.startswith("sp!"):
        return None
    writes = not re.match(r"v?(str|stm|push|cmp|cmn|tst|teq)", name)
    if (first == "sp" and writes) or (name == "msr" and re.match(r"[mp]sp\b", operands.lower())):
        return None
    return 0


def _target(operands: str) -> int | None:
    found = _TARGET.search(operands)
    return int(found.group(1), 16) if found else None


def _list_bytes(operands: str) -> int:
    """The size of a list of registers."""
    total = 0
    for item in _LIST.search(operands).group(1).split(","):
        first, _, last = item.strip().partition("-")
        count = int(last[1:]) - int(first[1:]) + 1 if last else 1
        total += count * (8 if re.fullmatch(r"d\d+", first) else 4)
    return total


@dataclass(frozen=True)
class _Image:
    """Functions and exception vectors of a firmware; addresses without the Thumb bit."""

    functions: dict[int, tuple[str, int]]
    vectors: tuple[int, ...]

    @classmethod
    def read(cls, elf: Path) -> _Image:
        from elftools.elf.elffile import ELFFile

        functions: dict[int, tuple[str, int]] = {}
        vectors: tuple[int, ...] = ()
        with elf.open("rb") as file:
            image = ELFFile(file)
            for symbol in image.get_section_by_name(".symtab").iter_symbols():
                address, size = symbol["st_value"], symbol["st_size"]
                if symbol["st_info"]["type"] == "STT_FUNC":
                    functions[address & ~1] = (symbol.name, size)
                elif symbol.name == "vectors":
                    section = image.get_section(symbol["st_shndx"])
                    start = address - section["sh_addr"]
                    words = section.data()[start : start + size]
                    vectors = tuple(
                        int.from_bytes(words[at : at + 4], "little") & ~1
                        for at in range(0, len(words), 4)
                    )
        if len(vectors) < _SYSTEM_EXCEPTIONS:
            raise ToolError(f"{elf}: has no table of exception vectors")
        return cls(functions, vectors)

    def address(self, name: str) -> int:
        """Of a function."""
        for address, (known, _size) in self.functions.items():
            if known == name:
                return address
        raise ToolError(f"the firmware has no function {name}")
