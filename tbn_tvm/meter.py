"""How much memory a device has handed out, measured; planned, see ``memory``."""

from __future__ import annotations

import os
import re

import tvm
import tvm_ffi


class MemoryMeter:
    """The most memory seen in use on a device since the meter was made.

    For a GPU it is what the driver has handed out on that device, to every process: run alone for
    figures worth quoting. For the CPU it is this process's resident memory. What the measured code
    keeps (TVM's allocators keep what they once took) is seen even where :meth:`sample` is called
    after the fact only.

    Parameters
    ----------
    device : tvm.runtime.Device
        ``tvm.cpu()`` or ``tvm.cuda()``.
    """

    def __init__(self, device: tvm.runtime.Device) -> None:
        self._used = _resident if device.dlpack_device_type() == 1 else _taken_of_cuda
        self.before = self._used()
        self.peak = 0

    def sample(self) -> int:
        """Look once; the peak so far, in bytes above what was in use before."""
        self.peak = max(self.peak, self._used() - self.before)
        return self.peak


def _taken_of_cuda() -> int:
    # TVM's one way to ask: "... 123 bytes free out of 456 bytes on device".
    told = str(tvm_ffi.get_global_func("runtime.GetCudaFreeMemory")())
    free, total = (int(number) for number in re.findall(r"\d+", told)[:2])
    return total - free


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
