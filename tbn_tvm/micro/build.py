"""Cross-compile a project and measure what it takes, from the ELF file."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tbn_tvm.errors import ArtifactError, FitError, ToolError, UsageError
from tbn_tvm.micro.disassembly import check_firmware
from tbn_tvm.micro.project import Project
from tbn_tvm.micro.stack import StackReport, read_usage, stack_report
from tbn_tvm.targets import Board

COMPILER = "arm-none-eabi-gcc"
INSTALL_COMPILER = "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi"
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Werror")
PROTOCOLS = {
    "tbn": "device/tbn_server.c",
    "mlperf-tiny": "device/tbn_mlperf_tiny.c",
    "none": "device/tbn_once.c",
    "profile": "device/tbn_server.c",
}
"""What a firmware speaks with its host, and the file of a project that does it."""

_TIME_LIMIT_S = 300
_SHOWN_FINDINGS = 10


@dataclass(frozen=True)
class BuildReport:
    """Sizes of a firmware in bytes, as the ELF file has them.

    Attributes
    ----------
    elf : str
        Path of the firmware.
    flash, ram : int
        Code, constants and initial data; static data, without the stack.
    weights, arena : int
        The model's constants; its arena.
    model_code : int
        Machine code of the model's kernels and entry function.
    stack_reserved : int
        What the linker script keeps free for the stack.
    stack : StackReport
        What of it can be used at most.
    """

    elf: str
    flash: int
    ram: int
    weights: int
    arena: int
    model_code: int
    stack_reserved: int
    stack: StackReport

    def to_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


def build(
    folder: str | Path, protocol: str = "tbn", sources: Sequence[str | Path] = ()
) -> BuildReport:
    """Build ``build/firmware.elf`` in a project's folder.

    Parameters
    ----------
    folder : path
        A project's.
    protocol : str
        One of ``PROTOCOLS``: ``tbn`` for :class:`tbn_tvm.micro.Session`, ``mlperf-tiny`` for the
        serial commands of MLPerf Tiny, or ``none`` for a program that runs the model once and
        sleeps; ``profile`` is ``tbn`` with the time taken at every step, for
        :func:`tbn_tvm.micro.profile.profile`. Other firmware than the session's has its protocol
        in its name.
    sources : sequence of path
        C files to add: what ``none`` calls before and after the run.

    Raises
    ------
    UsageError
        For an unknown protocol.
    ToolError
        Where the cross compiler is missing or refuses the code, where the machine code has
        something that the core lacks, or where its stack has no bound.
    FitError
        Where the firmware does not fit the board.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f"unknown protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    folder = Path(folder)
    project = Project.load(folder)
    for source in sources:
        if not Path(source).is_file():
            raise UsageError(f"{source}: no such file; expected C to build with the firmware")
    if PROTOCOLS[protocol] not in project.files:
        raise ArtifactError(f"{folder}: made before there was {protocol}; compile the model again")
    compiler = shutil.which(COMPILER)
    if compiler is None:
        raise ToolError(f"{COMPILER} is not on PATH; on Debian: {INSTALL_COMPILER}")
    output = folder / "build"
    output.mkdir(exist_ok=True)
    for old in output.glob("*.su"):
        old.unlink()
    stem = "firmware" if protocol == "tbn" else f"firmware-{protocol}"
    elf = output / f"{stem}.elf"
    others = set(PROTOCOLS.values()) - {PROTOCOLS[protocol]}
    own = [name for name in project.files if name.endswith(".c") and name not in others]
    board = project.board
    command = [
        compiler,
        *board.cpu_flags,
        *WARNINGS,
        "-O2",
        "-ffunction-sections",
        "-fdata-sections",
        "-fstack-usage",
        "-g",
        "-I.",
        "-Idevice",
        *(f"-D{define}" for define in board.defines),
        f'-DTBN_BOARD_NAME="{board.name}"',
        *(["-DTBN_PROFILE"] if protocol == "profile" else []),
        *own,
        *(str(Path(source).resolve()) for source in sources),
        "-nostartfiles",
        "--specs=nano.specs",
        "-Wl,--gc-sections",
        "-Lboard",
        f"-Tboard/{board.linker_script.name}",
        f"-Wl,-Map={output.name}/{stem}.map",
        "-lm",
        "-o",
        f"{output.name}/{stem}.partial",
    ]
    try:
        result = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_TIME_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        raise ToolError(f"{COMPILER} ran for more than {_TIME_LIMIT_S} s and was stopped") from None
    if result.returncode:
        if "will not fit in region" in result.stderr or "do not fit" in result.stderr:
            raise FitError(f"the firmware does not fit {board.name}:\n{result.stderr.strip()}")
        raise ToolError(f"{COMPILER} failed:\n{result.stderr.strip()}")
    partial = output / f"{stem}.partial"
    _check_instructions(partial, board)
    stack = stack_report(partial, read_usage(output), board, f"{project.name}_run")
    if stack.with_fault > board.stack_bytes:
        raise FitError(
            f"the firmware may use {stack.with_fault:,} bytes of stack, {board.name} keeps "
            f"{board.stack_bytes:,} for it: change stack_bytes in board.toml and __stack_size in "
            "the linker script; the deepest calls, with bytes of each: "
            + " > ".join(f"{name} {nbytes}" for name, nbytes in stack.total_path)
        )
    # Only a whole firmware gets the name that is run.
    partial.replace(elf)
    return measure(elf, project, stack)


def _check_instructions(elf: Path, board: Board) -> None:
    """Refuse a firmware that its core, unlike the emulator, could not run."""
    findings = check_firmware(elf, board)
    if findings:
        shown = [f"  {finding}" for finding in findings[:_SHOWN_FINDINGS]]
        if len(findings) > _SHOWN_FINDINGS:
            shown.append(f"  and {len(findings) - _SHOWN_FINDINGS} more")
        told = "\n".join(shown)
        raise ToolError(f"the firmware does not suit {board.name}'s {board.core}:\n{told}")


def measure(elf: Path, project: Project, stack: StackReport) -> BuildReport:
    """Read the sizes of a built firmware."""
    from elftools.elf.elffile import ELFFile

    flash = ram = 0
    symbols: dict[str, int] = {}
    code = 0
    with elf.open("rb") as file:
        image = ELFFile(file)
        for section in image.iter_sections():
            if not section["sh_flags"] & 2:  # SHF_ALLOC
                continue
            size = section["sh_size"]
            if section["sh_type"] != "SHT_NOBITS":
                flash += size
            if section["sh_flags"] & 1:  # SHF_WRITE
                ram += size
        for symbol in image.get_section_by_name(".symtab").iter_symbols():
            symbols[symbol.name] = symbols.get(symbol.name, 0) + symbol["st_size"]
            if symbol["st_info"]["type"] == "STT_FUNC" and symbol.name.startswith(
                f"{project.name}_"
            ):
                code += symbol["st_size"]
    weights = sum(
        size for name, size in symbols.items() if name.startswith(f"{project.name}_weights_")
    )
    return BuildReport(
        str(elf),
        flash,
        ram,
        weights,
        symbols.get("arena", 0),
        code,
        project.board.stack_bytes,
        stack,
    )
