"""CUDA source to a shared library for the CPU."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
RUNTIME = (
    "scheduler.cpp",
    "collectives.cpp",
    "instructions.cpp",
    "async_copies.cpp",
    "wgmma.cpp",
    "checks.cpp",
)
COMMON = ("-std=gnu++17", "-O2", "-g1", "-march=native", "-fPIC", "-ffp-contract=off")
KERNEL = (
    # Emitted code reads vectors of half through uint4 and the like.
    "-fno-strict-aliasing",
    # What they find is reported by checks.cpp, not by the compiler's library: it is not linked.
    "-fsanitize=alignment,bounds,integer-divide-by-zero,shift-exponent",
    "-fno-sanitize-recover=all",
    "-fvisibility=hidden",
    "-w",
)

_INCLUDE = re.compile(r"^[ \t]*#[ \t]*include[ \t]*<(?:cuda|mma|math_constants|sm_).*$", re.M)
_DYNAMIC_SHARED = re.compile(
    r"extern\s+__shared__\s+(?:(?:__align__|alignas)\s*\(\s*\d+\s*\)\s*)?"
    r"([\w:]+(?:\s+[\w:]+)*?)\s+(\w+)\s*\[\s*\]\s*;"
)
_KERNEL = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\s*\(\s*(\d+)[^)]*\)\s*)?(\w+)\s*\(")
_KERNEL_START = re.compile(r"(__global__\s+void\b)")
_STATIC_SHARED = re.compile(r"\b__shared__\b")


class EmulationError(RuntimeError):
    """A kernel did what a GPU forbids, or the emulator cannot run it."""


def compiler() -> str | None:
    """The C++ compiler, if there is one."""
    return shutil.which("g++")


def kernel_bounds(source: str) -> dict[str, int | None]:
    """Kernels of a source and the most threads in a block that each was compiled for."""
    found: dict[str, int | None] = {}
    for bound, name in _KERNEL.findall(source):
        found[name] = int(bound) if bound else found.get(name)
    return found


def build(source: str) -> Path:
    """Compile CUDA source; equal sources share a library for the life of the process.

    Raises
    ------
    EmulationError
        With the compiler's message.
    """
    runtime = _runtime()
    name = hashlib.sha256(source.encode()).hexdigest()[:24]
    library = _folder() / f"{name}.so"
    if not library.exists():
        text = _folder() / f"{name}.cpp"
        text.write_text(_as_cpp(source))
        compiled = text.with_suffix(".o")
        _compile(*COMMON, *KERNEL, *_poison(), f"-I{HERE}", "-c", str(text), "-o", str(compiled))
        linked = ("-shared", str(compiled), str(runtime), f"-Wl,-rpath,{runtime.parent}")
        _compile(*linked, "-o", str(library))
    return library


def _as_cpp(source: str) -> str:
    text = _INCLUDE.sub("", source)
    # C++ has no array without a size inside a function.
    text = _DYNAMIC_SHARED.sub(
        r"\1* const \2 = static_cast<\1*>(::tbn_emulator::dynamic_shared());", text
    )
    parts = _KERNEL_START.split(text)
    for i in range(2, len(parts), 2):
        name = _KERNEL.match(parts[i - 1] + parts[i])[2]
        parts[i] = _STATIC_SHARED.sub(f"TBN_SHARED_OF({name})", parts[i])
    text = "".join(parts)
    entries = "\n".join(f"TBN_EMULATED_KERNEL({name})" for name in kernel_bounds(source))
    return f'#include "emulator.h"\n#line 1 "kernel.cu"\n{text}\n{entries}\n'


@functools.cache
def _folder() -> Path:
    holder = tempfile.TemporaryDirectory(prefix="tbn-emulator-")
    _folder_holders.append(holder)
    return Path(holder.name)


_folder_holders: list[tempfile.TemporaryDirectory] = []


@functools.cache
def _runtime() -> Path:
    """The part that does not depend on the kernel."""
    library = _folder() / "libtbn_emulator.so"
    objects = [str(_folder() / f"{Path(name).stem}.o") for name in RUNTIME]

    def compile_one(name: str, output: str) -> None:
        _compile(*COMMON, f"-I{HERE}", "-c", str(HERE / name), "-o", output)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, RUNTIME, objects))
    _compile("-shared", *objects, "-o", str(library), "-ldl")
    return library


@functools.cache
def _poison() -> tuple[str, ...]:
    """Variables that nobody wrote hold a recognisable value, where the compiler can do that."""
    flag = "-ftrivial-auto-var-init=pattern"
    done = subprocess.run(
        [compiler(), flag, "-E", "-x", "c++", "/dev/null"], capture_output=True, check=False
    )
    return () if done.returncode else (flag,)


def _compile(*arguments: str) -> None:
    program = compiler()
    if program is None:
        raise EmulationError("the emulator needs g++, which is not installed")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise EmulationError(f"g++ refuses the kernel:\n{done.stderr[:8000]}")
