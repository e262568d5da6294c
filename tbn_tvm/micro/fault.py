"""What a device says when something went wrong on it, in words.

Bits are those of the Armv7-M ARM, B3.2.15 (CFSR) and B3.2.16 (HFSR), and of the Armv8-M ARM.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

REGISTERS = (
    "r0",
    "r1",
    "r2",
    "r3",
    "r12",
    "lr",
    "pc",
    "xpsr",
    "sp",
    "cfsr",
    "hfsr",
    "mmfar",
    "bfar",
)
"""As ``device/tbn_fault.h`` orders them."""

_CALLS = 4
_WORDS = struct.Struct(f"<B{len(REGISTERS) + _CALLS}I")

_MMARVALID, _BFARVALID = 1 << 7, 1 << 15
_REASONS = (
    (1 << 0, "code where none may be executed"),
    (1 << 1, "access that the memory protection forbids"),
    (1 << 3, "access that the memory protection forbids, on return from an exception"),
    (1 << 4, "no room on the stack for an exception"),
    (1 << 8, "code where there is no memory"),
    (1 << 9, "access to where there is no memory"),
    (1 << 10, "write to where there is no memory"),
    (1 << 11, "bus fault on return from an exception"),
    (1 << 12, "bus fault while the registers were stacked"),
    (1 << 16, "undefined instruction"),
    (1 << 17, "jump to an address that is no Thumb code (even, perhaps a null pointer)"),
    (1 << 18, "wrong return from an exception"),
    (1 << 19, "instruction of a coprocessor that is off or missing (the FPU?)"),
    (1 << 20, "stack overflow"),
    (1 << 24, "unaligned access"),
    (1 << 25, "division by zero"),
)
_VECTOR_FAULT = 1 << 1


class Cause(IntEnum):
    """What kind of thing went wrong."""

    EXCEPTION = 1
    STACK = 2
    WATCHDOG = 3
    ASSERTION = 4


@dataclass(frozen=True)
class FaultReport:
    """A device's last words.

    Attributes
    ----------
    cause : Cause
        What kind of thing went wrong.
    registers : dict of str to int
        By name of ``REGISTERS``; zeros where the device could not tell.
    calls : tuple of int
        Where calls on the stack return to, the innermost first.
    where, what : str
        Of an assertion: file and line, and the condition.
    """

    cause: Cause
    registers: dict[str, int]
    calls: tuple[int, ...] = ()
    where: str = ""
    what: str = ""

    @classmethod
    def parse(cls, payload: bytes) -> FaultReport | None:
        """Read a frame's payload; None where it is no report."""
        if len(payload) < _WORDS.size + 2 or payload[0] not in list(Cause):
            return None
        cause, *words = _WORDS.unpack_from(payload)
        texts = payload[_WORDS.size :].split(b"\0")
        if len(texts) != 3:
            return None
        where, what, _ = (text.decode("ascii", "replace") for text in texts)
        registers = dict(zip(REGISTERS, words, strict=False))
        calls = tuple(word for word in words[len(REGISTERS) :] if word)
        return cls(Cause(cause), registers, calls, where, what)

    @property
    def reasons(self) -> list[str]:
        """What the core's status registers say."""
        status = self.registers["cfsr"]
        told = [text for bit, text in _REASONS if status & bit]
        if self.registers["hfsr"] & _VECTOR_FAULT:
            told.append("no vector for an exception")
        for valid, name in ((_MMARVALID, "mmfar"), (_BFARVALID, "bfar")):
            if status & valid:
                told.append(f"at address 0x{self.registers[name]:08x}")
        return told

    def describe(self, firmware: Firmware | None = None, limit: str = "") -> str:
        """Some lines for people.

        Parameters
        ----------
        firmware : Firmware, optional
            Names functions and lines.
        limit : str
            Of the watch-dog, with its unit.
        """
        pc = self.registers["pc"]
        place = _place(pc, firmware) if pc else "at a place that the full stack does not tell"
        reasons = " ".join(self.reasons) or "no reason given: this core does not tell"
        if self.cause == Cause.ASSERTION:
            head = f"assertion on the device: {self.what} does not hold at {self.where}, {place}"
        elif self.cause == Cause.STACK:
            room = firmware.stack if firmware else ""
            head = (
                f"stack overflow on the device, {place}: raise stack_bytes in board.toml and "
                f"__stack_size in the linker script{room}"
            )
        elif self.cause == Cause.WATCHDOG:
            told = f" than {limit}" if limit else " than it may"
            head = f"watch-dog on the device: the model ran longer{told}, and was {place}"
        else:
            head = f"the device faulted {place}: {reasons}"
        lines = [head]
        if any(self.registers.values()):
            # Where the program counter is unknown, and in an assertion, so are most others.
            all_known = pc and self.cause != Cause.ASSERTION
            shown = [
                f"{name} 0x{value:08x}"
                for name, value in self.registers.items()
                if value or all_known
            ]
            lines += ["  " + "  ".join(shown[at : at + 5]) for at in range(0, len(shown), 5)]
        calls = list(self.calls)
        # A function that calls no other keeps its return address in lr.
        lr = self.registers["lr"]
        if lr & 1 and firmware and firmware.place(lr - 3) and lr not in calls:
            calls.insert(0, lr)
        if calls and (calls[0] & ~1) - 2 == pc:
            del calls[0]
        # A return address is behind the call.
        lines += [f"  called {_place((address & ~1) - 2, firmware)}" for address in calls]
        return "\n".join(lines)


def _place(address: int, firmware: Firmware | None) -> str:
    found = firmware.place(address) if firmware else ""
    return f"at 0x{address:08x}" + (f" ({found})" if found else "")


class Firmware:
    """Names of a firmware's addresses.

    Parameters
    ----------
    elf : Path
        The firmware; with lines where it was built with ``-g``.
    """

    def __init__(self, elf: Path) -> None:
        from elftools.elf.elffile import ELFFile

        self._functions: list[tuple[int, int, str]] = []
        self._lines: list[tuple[int, int, str]] = []
        symbols: dict[str, int] = {}
        with elf.open("rb") as file:
            image = ELFFile(file)
            for symbol in image.get_section_by_name(".symtab").iter_symbols():
                symbols[symbol.name] = symbol["st_value"]
                if symbol["st_info"]["type"] == "STT_FUNC":
                    start = symbol["st_value"] & ~1
                    self._functions.append((start, start + symbol["st_size"], symbol.name))
            if image.has_dwarf_info():
                self._lines = list(_lines(image.get_dwarf_info()))
        reserved = symbols.get("__stack_top", 0) - symbols.get("__stack_limit", 0)
        self.stack = f" (now {reserved:,} bytes)"
        self.stack_limit = symbols.get("__stack_limit", 0)

    def place(self, address: int) -> str:
        """Function, offset, file and line of an address; empty where it is in no function."""
        for start, end, name in self._functions:
            if start <= address < end:
                line = next((text for a, b, text in self._lines if a <= address < b), "")
                return f"in {name}+{address - start}" + (f", {line}" if line else "")
        return ""


def _lines(dwarf):
    """Ranges of addresses with file and line."""
    for unit in dwarf.iter_CUs():
        program = dwarf.line_program_for_CU(unit)
        if program is None:
            continue
        names, before = program["file_entry"], None
        first = 0 if program["version"] >= 5 else 1
        for entry in program.get_entries():
            state = entry.state
            if state is None:
                continue
            if before is not None and state.address > before.address:
                name = names[before.file - first].name.decode(errors="replace")
                yield before.address, state.address, f"{Path(name).name}:{before.line}"
            before = None if state.end_sequence else state
