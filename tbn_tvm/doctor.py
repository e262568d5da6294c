"""What this machine has of the tools that parts of the project use."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

from tbn_tvm._tvm import installed, pair_problem

_TIME_LIMIT_S = 20
_X86_FEATURES = ("avx2", "avx512f", "avx512vnni", "avx512bf16", "amx-tile", "amx-bf16")


@dataclass(frozen=True)
class Finding:
    """One tool.

    Attributes
    ----------
    what, detail, remedy : str
        Its name and use; version or features; the command that gets it.
    found, required : bool
        Whether it is there; whether every use of the package needs it.
    """

    what: str
    found: bool
    detail: str
    remedy: str
    required: bool = False


def examine() -> list[Finding]:
    """Look for everything."""
    problem = pair_problem(installed("apache-tvm"), installed("apache-tvm-ffi"))
    findings = [
        Finding(
            "TVM and its FFI",
            problem is None,
            f"{installed('apache-tvm')} with {installed('apache-tvm-ffi')}",
            (problem or "").rpartition("run: ")[2],
            required=True,
        ),
        _package("PyTorch", "torch", "pip install torch", required=True),
        _llvm() if problem is None else Finding("LLVM", False, "needs TVM", "see above"),
        _program("host C++ compiler", "g++", "apt-get install g++", required=True),
        _program(
            "Cortex-M compiler",
            "arm-none-eabi-gcc",
            "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi",
        ),
        _newlib(),
        _program("Cortex-M emulator", "qemu-system-arm", "apt-get install qemu-system-arm"),
        _package("Jinja2 (bare metal)", "jinja2", 'pip install "tbn-tvm[micro]"'),
        _package("pyelftools (bare metal)", "pyelftools", 'pip install "tbn-tvm[micro]"'),
        _package("ONNX", "onnx", 'pip install "tbn-tvm[onnx]"'),
        _program("CUDA compiler", "nvcc", "NVIDIA's CUDA toolkit, 12 or newer"),
        _gpu(),
    ]
    return findings


def _package(what: str, name: str, remedy: str, required: bool = False) -> Finding:
    version = installed(name)
    return Finding(what, version is not None, version or "", remedy, required)


def _program(what: str, name: str, remedy: str, required: bool = False) -> Finding:
    if shutil.which(name) is None:
        return Finding(what, False, f"{name} is not on PATH", remedy, required)
    lines = _output([name, "--version"]).splitlines()
    # nvcc tells its version in the last lines, the others in the first.
    text = next((line for line in lines if "release" in line or "ersion" in line), "")
    return Finding(what, True, (text or (lines[0] if lines else name)).strip(), remedy, required)


def _newlib() -> Finding:
    remedy = "apt-get install libnewlib-arm-none-eabi"
    found = False
    if shutil.which("arm-none-eabi-gcc"):
        # The compiler echoes the bare name of a file that it does not have.
        found = "/" in _output(["arm-none-eabi-gcc", "-print-file-name=nano.specs"])
    return Finding("Cortex-M C library", found, "newlib-nano" if found else "", remedy)


def _llvm() -> Finding:
    import tvm
    from tvm.target import codegen

    if not tvm.runtime.enabled("llvm"):
        return Finding("LLVM", False, "TVM was built without it", "pip install apache-tvm", True)
    cpu = codegen.llvm_get_system_cpu()
    target = tvm.target.Target(
        {"kind": "llvm", "mtriple": codegen.llvm_get_system_triple(), "mcpu": cpu}
    )
    arm = target.attrs["mtriple"].startswith(("aarch64", "arm"))
    wanted = ("neon", "dotprod", "sve") if arm else _X86_FEATURES
    present = [name for name in wanted if codegen.llvm_cpu_has_features(name, target)]
    return Finding(
        "LLVM",
        True,
        f"{codegen.llvm_version_major()}, this CPU: {cpu} ({', '.join(present) or 'no SIMD'})",
        "a build of TVM with LLVM",
        required=True,
    )


def _gpu() -> Finding:
    detail = _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    return Finding("CUDA GPU", bool(detail.strip()), detail.strip(), "a machine with one")


def _output(command: list[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_TIME_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout if result.returncode == 0 else ""
