"""CUDA source to a shared library for the CPU."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
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
COMMON = ("-std=gnu++17", "-g1", "-march=native", "-fPIC", "-ffp-contract=off")
KERNEL = (
    # Unrolled kernels take longer to compile than to run; what is called often is in the runtime.
    "-Og",
    # Emitted code reads vectors of half through uint4 and the like.
    "-fno-strict-aliasing",
    # What they find is reported by checks.cpp, not by the compiler's library: it is not linked.
    "-fsanitize=alignment,bounds,integer-divide-by-zero,shift-exponent",
    "-fno-sanitize-recover=all",
    "-fvisibility=hidden",
    "-w",
)
KEPT_SECONDS = 2 * 24 * 3600
"""How long the cache keeps a library that nobody uses."""

# Variables that nobody wrote hold a recognisable value.
_POISON = "-ftrivial-auto-var-init=pattern"
_POISON_SINCE = 12

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
    """Compile CUDA source to a library, which equal sources share.

    Raises
    ------
    EmulationError
        With the compiler's message.
    """
    runtime = _runtime()
    name = hashlib.sha256(source.encode()).hexdigest()[:24]

    def make(scratch: Path, library: Path) -> None:
        text, compiled = scratch / "kernel.cpp", scratch / "kernel.o"
        text.write_text(_as_cpp(source))
        poison = (_POISON,) if _version()[0] >= _POISON_SINCE else ()
        _compile(*COMMON, *KERNEL, *poison, f"-I{HERE}", "-c", str(text), "-o", str(compiled))
        linked = ("-shared", str(compiled), str(runtime), f"-Wl,-rpath,{runtime.parent}")
        _compile(*linked, "-o", str(library))

    return kept(f"{name}.so", make)


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
def _runtime() -> Path:
    """The part that does not depend on the kernel."""

    def make(scratch: Path, library: Path) -> None:
        objects = [str(scratch / f"{name}.o") for name in RUNTIME]

        def compile_one(name: str, output: str) -> None:
            _compile(*COMMON, "-O3", f"-I{HERE}", "-c", str(HERE / name), "-o", output)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, RUNTIME, objects))
        _compile("-shared", *objects, "-o", str(library), "-ldl")

    return kept("libtbn_emulator.so", make)


def kept(name: str, make: Callable[[Path, Path], None]) -> Path:
    """A file of the cache, made where it is missing.

    Parameters
    ----------
    name : str
        Of the file; whatever else it depends on is in the name of the folder.
    make : callable
        ``make(scratch, path)`` writes it, with a folder for what comes in between.
    """
    path = _folder() / name
    if path.exists():
        os.utime(path)
    else:
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            made = Path(scratch) / name
            make(Path(scratch), made)
            made.replace(path)  # at once: other processes may look for it
    return path


@functools.cache
def _folder() -> Path:
    """The cache of this version of the emulator, compiler and processor."""
    stamp = hashlib.sha256(repr((COMMON, KERNEL, _version(), _processor())).encode())
    for source in sorted([*HERE.glob("*.cpp"), *HERE.glob("*.h"), Path(__file__)]):
        stamp.update(source.read_bytes())
    root = Path(tempfile.gettempdir()) / f"tbn-emulator-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    status = root.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise EmulationError(f"{root} can be written by others: remove it")
    folder = root / stamp.hexdigest()[:24]
    folder.mkdir(exist_ok=True)
    os.utime(folder)
    for old in [*root.iterdir(), *folder.iterdir()]:
        _forget(old)
    return folder


def _forget(path: Path) -> None:
    """Remove what nobody has used for a while."""
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        if time.time() - path.stat().st_mtime < KEPT_SECONDS:
            return
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _processor() -> str:
    """What ``-march=native`` depends on."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.machine()


@functools.cache
def _version() -> tuple[int, ...]:
    text = _compile("-dumpfullversion", "-dumpversion")
    return tuple(int(part) for part in re.findall(r"\d+", text))


def _compile(*arguments: str) -> str:
    program = compiler()
    if program is None:
        raise EmulationError("the emulator needs g++, which is not installed")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise EmulationError(f"g++ refuses the kernel:\n{done.stderr[:8000]}")
    return done.stdout
