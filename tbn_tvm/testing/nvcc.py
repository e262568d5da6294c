"""What NVIDIA's compiler makes of a kernel; it needs no GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

# 177: a function or variable is never used; TVM emits many.
_OPTIONS = ("-cubin", "-std=c++17", "-O3", "-Xptxas", "-v", "-diag-suppress=177")


class CompileError(RuntimeError):
    """nvcc or ptxas refused a source; the message is theirs."""


@dataclass(frozen=True)
class KernelReport:
    """What ptxas says of a kernel.

    Attributes
    ----------
    registers : int
        A thread.
    stack, spill_stores, spill_loads : int
        Bytes a thread. A stack without spills is an array that was indexed at run time.
    shared : int
        Bytes of static shared memory a block.
    barriers : int
        Hardware barriers a block.
    """

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int
    barriers: int


@dataclass(frozen=True)
class Compiled:
    """Machine code and what ptxas says of its kernels, by name; warnings as nvcc printed them."""

    cubin: bytes
    kernels: dict[str, KernelReport]
    log: str


def nvcc() -> str | None:
    """The compiler, if there is one."""
    return shutil.which("nvcc")


def compile_cuda(source: str, arch: str = "sm_90", options: tuple[str, ...] = ()) -> Compiled:
    """Compile CUDA source to machine code.

    Parameters
    ----------
    source : str
        As TVM emits it.
    arch : str
        ``sm_90`` becomes ``sm_90a`` where the source uses its special instructions.
    options : tuple of str
        More options for nvcc.

    Raises
    ------
    CompileError
        With the compiler's message, or if there is none.
    """
    program = nvcc()
    if program is None:
        raise CompileError("nvcc is not installed")
    if arch == "sm_90" and re.search(r"wgmma|setmaxnreg", source):
        arch = "sm_90a"
    with tempfile.TemporaryDirectory() as folder:
        text, cubin = Path(folder) / "kernel.cu", Path(folder) / "kernel.cubin"
        text.write_text(source)
        done = subprocess.run(
            [program, *_OPTIONS, f"-arch={arch}", *options, str(text), "-o", str(cubin)],
            capture_output=True,
            text=True,
            check=False,
        )
        log = done.stdout + done.stderr
        if done.returncode:
            raise CompileError(f"nvcc refuses the source for {arch}:\n{log}")
        return Compiled(cubin.read_bytes(), _reports(log), log)


def _reports(log: str) -> dict[str, KernelReport]:
    reports = {}
    for part in log.split("Compiling entry function '")[1:]:

        def number(pattern: str, part: str = part) -> int:
            found = re.search(pattern, part)
            return int(found[1]) if found else 0

        reports[part[: part.index("'")]] = KernelReport(
            number(r"Used (\d+) registers"),
            number(r"(\d+) bytes stack frame"),
            number(r"(\d+) bytes spill stores"),
            number(r"(\d+) bytes spill loads"),
            number(r"(\d+) bytes smem"),
            number(r"used (\d+) barriers"),
        )
    return reports
