"""Boards: a folder of data each. Adding one needs no Python.

``board.toml`` describes the core, its memories, clock, emulator, debug probe and the C files of its
UART and timer; ``linker.ld`` lays out its memory. Start-up code is in ``cortex_m/``; drivers that
several boards share are in folders of their chip family.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from tbn_tvm.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).resolve().parent

ARCHITECTURES = (
    "armv6-m",
    "armv7-m",
    "armv7e-m",
    "armv8-m.base",
    "armv8-m.main",
    "armv8.1-m.main",
)
"""What a core can implement, as compilers call it."""

FPUS = ("none", "single", "double")
"""What a core's floating-point unit can be."""

_INSTRUCTIONS_PER_SECOND = 10**9
"""Of emulated time: the emulator runs with ``-icount shift=0``, one instruction a nanosecond."""


@dataclass(frozen=True)
class Board:
    """A microcontroller board.

    Attributes
    ----------
    name, description, core : str
        Name of its folder; one line; the Arm core.
    architecture : str
        That the core implements, as compilers call it: ``armv7e-m`` for example.
    fpu : str
        Its floating-point unit: ``none``, ``single`` or ``double`` precision.
    features : frozenset of str
        What kernels may use: ``dsp`` (SIMD in 32-bit registers), ``fpu``, ``double`` (an FPU of
        double precision) and ``mve`` (128-bit vectors).
    cpu_flags : tuple of str
        For the cross compiler.
    flash_bytes, ram_bytes : int
        What the linker may fill.
    stack_bytes : int
        Kept free for the stack.
    clock_hz : int
        Of the core.
    sources : tuple of Path
        C files of start-up, UART and timer, and their headers.
    linker_script : Path
        Its memory layout.
    defines : tuple of str
        Preprocessor definitions ``NAME=value``.
    emulator_machine : str
        QEMU's name of the board.
    instructions_per_tick : Fraction
        Emulated instructions in one tick of the timer.
    pyocd_target : str or None
        pyOCD's name of the chip, where it has one.
    """

    name: str
    description: str
    core: str
    architecture: str
    fpu: str
    features: frozenset[str]
    cpu_flags: tuple[str, ...]
    flash_bytes: int
    ram_bytes: int
    stack_bytes: int
    clock_hz: int
    sources: tuple[Path, ...]
    linker_script: Path
    defines: tuple[str, ...]
    emulator_machine: str
    instructions_per_tick: Fraction
    pyocd_target: str | None


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

    def one_of(name: str, known: tuple[str, ...]) -> str:
        value = entry(name, str)
        if value not in known:
            raise UsageError(
                f"{path}: the entry {name!r} is {value!r}: expected one of {', '.join(known)}"
            )
        return value

    def positive(name: str) -> int:
        value = entry(name, int)
        if value <= 0:
            raise UsageError(f"{path}: the entry {name!r} is {value}: expected more than 0")
        return value

    defines = entry("defines", dict) if "defines" in fields else {}
    fpu = one_of("core.fpu", FPUS)
    features = {
        "dsp": entry("core.dsp", bool),
        "fpu": fpu != "none",
        "double": fpu == "double",
        "mve": entry("core.mve", bool),
    }
    return Board(
        name=name,
        description=entry("description", str),
        core=entry("core.name", str),
        architecture=one_of("core.architecture", ARCHITECTURES),
        fpu=fpu,
        features=frozenset(name for name, has in features.items() if has),
        cpu_flags=tuple(strings("core.flags")),
        flash_bytes=positive("memory.flash_bytes"),
        ram_bytes=positive("memory.ram_bytes"),
        stack_bytes=positive("memory.stack_bytes"),
        clock_hz=positive("core.clock_hz"),
        sources=tuple(FOLDER / source for source in strings("sources")),
        linker_script=FOLDER / entry("linker_script", str),
        defines=(
            *(f"{key}={value}" for key, value in defines.items()),
            f"TBN_TIMER_HZ={positive('core.clock_hz')}u",
        ),
        emulator_machine=entry("emulator.machine", str),
        instructions_per_tick=Fraction(_INSTRUCTIONS_PER_SECOND, positive("emulator.timer_hz")),
        pyocd_target=entry("probe.pyocd_target", str) if "probe" in fields else None,
    )
