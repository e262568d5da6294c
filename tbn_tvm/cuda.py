"""CUDA around TVM: architectures, the compiler of device code, and the device that is present."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tbn_tvm.errors import DeviceError, ToolError, UsageError

DEFAULT_ARCH = "sm_80"
"""Compiled for where neither the user nor a device says otherwise."""

NVCC_ROOTS = ("$CUDA_HOME", "$CUDA_PATH", "/usr/local/cuda")
"""Where nvcc is looked for, beside ``PATH``."""

_OPTIONS = (
    "-O3",
    "--std=c++17",
    "-U__CUDA_NO_HALF_OPERATORS__",
    "-U__CUDA_NO_HALF_CONVERSIONS__",
    "-U__CUDA_NO_BFLOAT16_OPERATORS__",
    "-U__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-U__CUDA_NO_BFLOAT162_OPERATORS__",
    "-U__CUDA_NO_BFLOAT162_CONVERSIONS__",
    "--expt-relaxed-constexpr",
    "--expt-extended-lambda",
)


def check_arch(arch: str) -> str:
    """An architecture as ``sm_90`` or, with instructions of that one chip, ``sm_90a``.

    Raises
    ------
    UsageError
        Where it is not of that form.
    """
    if not re.fullmatch(r"sm_\d{2,3}[af]?", arch):
        raise UsageError(f"CUDA architecture {arch!r}: expected sm_ and a number, sm_90 for one")
    return arch


def device_arch() -> str | None:
    """The architecture of the first CUDA device, if there is one that TVM can use."""
    import tvm

    device = tvm.cuda(0)
    if not device.exist:
        return None
    return "sm_" + device.compute_version.replace(".", "")


def require_device(what: str) -> None:
    """Raise unless there is a CUDA device.

    Raises
    ------
    DeviceError
        With what is missing: a run-time library, or the device.
    """
    import tvm
    import tvm_ffi

    if tvm.cuda(0).exist:
        return
    reason = "no CUDA device is visible"
    if tvm_ffi.get_global_func("device_api.cuda", allow_missing=True) is None:
        lacking = [name for name in ("libcuda.so.1", "libcudart.so.13") if not _loads(name)]
        hints = {
            "libcuda.so.1": "libcuda.so.1 of the NVIDIA driver",
            "libcudart.so.13": "libcudart.so.13 of CUDA 13 (for one: pip install "
            "nvidia-cuda-runtime, its folder in LD_LIBRARY_PATH)",
        }
        missing = " and ".join(hints[name] for name in lacking) or "TVM's CUDA run time"
        reason += f": cannot load {missing}"
    raise DeviceError(f"{what} is for cuda, and {reason}")


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def find_nvcc() -> Path:
    """The CUDA compiler, from ``PATH``, ``CUDA_HOME``, ``CUDA_PATH`` or ``/usr/local/cuda``.

    Raises
    ------
    ToolError
        Where there is none.
    """
    found = shutil.which("nvcc")
    if found:
        return Path(found)
    for root in NVCC_ROOTS:
        path = Path(os.path.expandvars(root)) / "bin" / "nvcc"
        if path.is_file():
            return path
    raise ToolError(
        "compiling for cuda needs nvcc, which is not in PATH, CUDA_HOME or /usr/local/cuda: "
        "install NVIDIA's CUDA toolkit 13 (Debian, from NVIDIA's repository: apt-get install "
        "cuda-nvcc-13-0 cuda-cudart-dev-13-0); no GPU is needed"
    )


def compile_source(source: str, arch: str) -> bytes:
    """CUDA source to a fat binary: machine code for the architecture, and PTX for later ones.

    Parameters
    ----------
    source : str
        One translation unit.
    arch : str
        See :func:`check_arch`. Code for one chip's own instructions comes without PTX, which
        no other chip could use.

    Raises
    ------
    ToolError
        Where there is no nvcc, or it refuses the source or the architecture.
    """
    nvcc = find_nvcc()
    number = arch.removeprefix("sm_")
    code = f"sm_{number}" if number[-1].isalpha() else f"[sm_{number},compute_{number}]"
    with tempfile.TemporaryDirectory(prefix="tbn_tvm_") as folder:
        written, made = Path(folder) / "kernels.cu", Path(folder) / "kernels.fatbin"
        written.write_text(source)
        command = [str(nvcc), "--fatbin", *_OPTIONS]
        command += ["-gencode", f"arch=compute_{number},code={code}", "-o", str(made), str(written)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not made.is_file():
            raise ToolError(f"nvcc refused the kernels for {arch}: {_complaint(done)}")
        return made.read_bytes()


def _complaint(done: subprocess.CompletedProcess) -> str:
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    told = [line for line in lines if re.search(r"error|fatal|unsupported", line, re.IGNORECASE)]
    return (told or lines or [f"exit status {done.returncode}"])[0]


# TVM 0.27 builds device code in two steps. Code generation makes source, which any machine can do;
# TVM's CUDA run time, where a library is loaded, has a callback compile it. Here nvcc runs ahead of
# time instead: the source is taken away when it is generated, a reference left in its place, and
# the callback answers the reference with what nvcc made.

_COMPILE, _POSTPROCESS = "tvm_callback_cuda_compile", "tvm_callback_cuda_postproc"
_ALWAYS_SOURCE = "TVM_COMPILE_FORCE_FALLBACK"
_REFERENCE = "// tbn-tvm device code "


@contextlib.contextmanager
def taking_source():
    """Within it, TVM generates libraries that refer to device code instead of holding its source.

    Yields
    ------
    dict of str to str
        CUDA source by the reference to it.
    """
    sources: dict[str, str] = {}

    def take(source, _target):
        reference = hashlib.sha256(str(source).encode()).hexdigest()
        sources[reference] = str(source)
        return _REFERENCE + reference

    before = os.environ.get(_ALWAYS_SOURCE)
    # On a machine with a GPU, too, where TVM would go on to the second step at once.
    os.environ[_ALWAYS_SOURCE] = "1"
    try:
        with _registered(_POSTPROCESS, take):
            yield sources
    finally:
        if before is None:
            del os.environ[_ALWAYS_SOURCE]
        else:
            os.environ[_ALWAYS_SOURCE] = before


@contextlib.contextmanager
def giving_code(code: Mapping[str, bytes]):
    """Within it, libraries that refer to device code can be loaded.

    Parameters
    ----------
    code : mapping of str to bytes
        What :func:`compile_source` made, by reference.
    """

    def give(source):
        return code[str(source).removeprefix(_REFERENCE)]

    with _registered(_COMPILE, give):
        yield


@contextlib.contextmanager
def _registered(name: str, function):
    import tvm_ffi

    before = tvm_ffi.get_global_func(name, allow_missing=True)
    tvm_ffi.register_global_func(name, function, override=True)
    try:
        yield
    finally:
        if before is None:
            tvm_ffi.registry.remove_global_func(name)
        else:
            tvm_ffi.register_global_func(name, before, override=True)
