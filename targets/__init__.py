"""Boards: a folder of data each. Adding one needs no Python.

``board.toml`` describes the core, its memories, clock, emulator and the C files of its UART and
timer; ``linker.ld`` lays out its memory. Shared start-up code is in ``cortex_m/``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tbn_tvm.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Board:
    """A microcontroller board.

    Attributes
    ----------
    name, description, core : str
        Name of its folder; one line; the Arm core.
    cpu_flags : tuple of str
        For the cross compiler.
    flash_bytes, ram_bytes : int
        What the linker may fill.
    stack_bytes : int
        Kept free for the stack.
    clock_hz : int
        Of the core.
    sources : tuple of Path
        C files of start-up, UART and timer.
    linker_script : Path
        Its memory layout.
    defines : tuple of str
        Preprocessor definitions ``NAME=value``.
    emulator_machine : str
        QEMU's name of the board.
    instructions_per_tick : int
        Emulated instructions in one tick of the timer.
    """

    name: str
    description: str
    core: str
    cpu_flags: tuple[str, ...]
    flash_bytes: int
    ram_bytes: int
    stack_bytes: int
    clock_hz: int
    sources: tuple[Path, ...]
    linker_script: Path
    defines: tuple[str, ...]
    emulator_machine: str
    instructions_per_tick: int


def board_names() -> list[str]:
    """Names of the boards, sorted."""
    return sorted(path.parent.name for path in FOLDER.glob("*/board.toml"))


def load_board(name: str) -> Board:
    """Read a board's description.

    Raises
    ------
    UsageError
        For an unknown board, or a description that lacks something or has it of another kind.
    """
    if name not in board_names():
        raise UsageError(f"unknown board {name!r}: expected one of {', '.join(board_names())}")
    path = FOLDER / name / "board.toml"
    try:
        fields = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None

    def entry(name: str, kind: type):
        value = fields
        for part in name.split("."):
            if not isinstance(value, dict) or part not in value:
                raise UsageError(f"{path}: the entry {name!r} is missing")
            value = value[part]
        if type(value) is not kind:
            raise UsageError(f"{path}: the entry {name!r} is {value!r}: expected {kind.__name__}")
        return value

    def strings(name: str) -> list[str]:
        values = entry(name, list)
        if not all(isinstance(value, str) for value in values):
            raise UsageError(f"{path}: the entry {name!r} is {values}: expected a list of str")
        return values

    defines = entry("defines", dict) if "defines" in fields else {}
    return Board(
        name=name,
        description=entry("description", str),
        core=entry("core.name", str),
        cpu_flags=tuple(strings("core.flags")),
        flash_bytes=entry("memory.flash_bytes", int),
        ram_bytes=entry("memory.ram_bytes", int),
        stack_bytes=entry("memory.stack_bytes", int),
        clock_hz=entry("core.clock_hz", int),
        sources=tuple(FOLDER / source for source in strings("sources")),
        linker_script=FOLDER / entry("linker_script", str),
        defines=tuple(f"{key}={value}" for key, value in defines.items()),
        emulator_machine=entry("emulator.machine", str),
        instructions_per_tick=entry("emulator.instructions_per_tick", int),
    )
