"""OpenCL kernels on the CPU: the source that TVM emits, through PoCL or another OpenCL driver."""

from __future__ import annotations

import ctypes
import functools

import numpy as np
import tvm
from tvm import tirx as tir

from tbn_tvm.testing import device_memory
from tbn_tvm.testing.lowering import Kernel, lower

TARGET = {"kind": "opencl"}


class OpenCLError(RuntimeError):
    """There is no OpenCL device to run on, or it cannot run this."""


@functools.cache
def device():
    """The first OpenCL device that is a CPU, or None."""
    try:
        import pyopencl
    except ImportError:
        return None
    try:
        platforms = pyopencl.get_platforms()
    except pyopencl.Error:  # no driver is installed
        return None
    for platform in platforms:
        for found in platform.get_devices():
            if found.type & pyopencl.device_type.CPU:
                return found
    return None


def opencl_source(mod: tir.PrimFunc | tvm.IRModule) -> str:
    """The OpenCL C that TVM emits."""
    return lower(mod, TARGET).source


def run(
    mod: tir.PrimFunc | tvm.IRModule, arrays: list, *, entry: str | None = None
) -> list[tuple[str, list[int], int]]:
    """Compile for OpenCL and call a host function.

    Parameters
    ----------
    mod : tvm.tirx.PrimFunc or tvm.IRModule
        With thread bindings; shapes may be symbolic.
    arrays : list
        NumPy arrays, changed in place, and scalars.
    entry : str, optional
        The function; may be left out where there is one.

    Returns
    -------
    list of (str, list of int, int)
        The launches: kernel, extents of grid and block, bytes of dynamic shared memory (0).

    Raises
    ------
    OpenCLError
        Without a driver, or where the kernels need float16 and the device does not have it.
    """
    lowered = lower(mod, TARGET)
    launches: list[tuple[str, list[int], int]] = []
    queue, program = _program(lowered.source)

    def packed(kernel: Kernel):
        def launched(*values):
            arguments, extents, shared = kernel.split(values)
            launches.append((kernel.name, extents, shared))
            _launch(queue, program, kernel, arguments, extents)

        return launched

    device_memory.call(
        lowered.host,
        lowered.entry(entry),
        arrays,
        device_memory.OPENCL,
        {name: packed(kernel) for name, kernel in lowered.kernels.items()},
        # The driver runs kernels in threads of its own, where a fault would end the process.
        protect=False,
    )
    return launches


def _program(source: str):
    import pyopencl

    found = device()
    if found is None:
        raise OpenCLError("there is no OpenCL device that is a CPU: install pyopencl and PoCL")
    if "cl_khr_fp16" in source and "cl_khr_fp16" not in found.extensions.split():
        raise OpenCLError(
            f"{found.platform.name} on {found.name.strip()} has no cl_khr_fp16, and the kernels "
            "use float16: run them in float32, or in the CUDA emulator"
        )
    context = pyopencl.Context([found])
    return pyopencl.CommandQueue(context), pyopencl.Program(context, source).build()


def _launch(queue, program, kernel: Kernel, arguments: list, extents: list[int]) -> None:
    import pyopencl

    grid, block = extents[:3], extents[3:]
    threads = int(np.prod(block))
    if threads > queue.device.max_work_group_size:
        raise OpenCLError(
            f"{kernel.name}: {threads} threads, at most {queue.device.max_work_group_size}"
        )
    if not all(extents):
        raise OpenCLError(f"{kernel.name}: a grid or block of size zero: {extents}")
    compiled = pyopencl.Kernel(program, kernel.name)
    for position, (value, dtype) in enumerate(zip(arguments, kernel.parameters, strict=True)):
        if dtype == "handle":
            # A CPU device uses host memory where it lies; the length is not looked at.
            start = (ctypes.c_char * 1).from_address(value.value)
            compiled.set_arg(position, pyopencl.SVM(np.frombuffer(start, np.uint8)))
        else:
            compiled.set_arg(position, np.dtype(dtype).type(value))
    sizes = [extent * size for extent, size in zip(grid, block, strict=True)]
    pyopencl.enqueue_nd_range_kernel(queue, compiled, sizes, block).wait()
