"""Kernels of one CUDA source, ready to be launched on the CPU."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tbn_tvm.testing.cuda_emulator.build import EmulationError, build, kernel_bounds
from tbn_tvm.testing.cuda_emulator.tensor_map import TensorMap
from tbn_tvm.testing.device_memory import CUDA, DeviceArray

ORDERS = {"forward": 0, "reverse": 1, "shuffled": 2}


@dataclass(frozen=True)
class Options:
    """Freedoms that a GPU has and a correct kernel does not notice.

    Attributes
    ----------
    order : str
        In which order the threads that may run do so: ``"forward"``, ``"reverse"``, ``"shuffled"``.
    seed : int
        Of ``"shuffled"``.
    early_copies : bool
        Asynchronous work happens when it is issued, not when it is waited for.
    """

    order: str = "forward"
    seed: int = 0
    early_copies: bool = False


EVERY_WAY = tuple(Options(order, early_copies=early) for order in ORDERS for early in (False, True))
"""Options that a kernel should be run with, all of them: a hazard shows in some only."""


class Program:
    """Compiled kernels of one source.

    Parameters
    ----------
    source : str
        CUDA C++, as TVM emits it or written by hand; kernels must be ``extern "C"``.
    """

    def __init__(self, source: str):
        self.source = source
        self.bounds = kernel_bounds(source)
        self._path = build(source)
        self._library = ctypes.CDLL(str(self._path))

    def launch(
        self,
        name: str,
        grid: Sequence[int] | int,
        block: Sequence[int] | int,
        arguments: Sequence,
        dynamic_shared: int = 0,
        options: Options | None = None,
    ) -> None:
        """Run a kernel to its end.

        Parameters
        ----------
        name : str
            Of the kernel.
        grid, block : int or sequence of int
            Extents along x, y, z.
        arguments : sequence
            NumPy arrays, changed in place, :class:`TensorMap`, addresses as ``ctypes.c_void_p``, or
            scalars.
        dynamic_shared : int
            Bytes.
        options : Options, optional
            Defaults to ``Options()``.

        Raises
        ------
        EmulationError
            On a deadlock, a bad address, a launch that a GPU would refuse, ...
        """
        values, arrays, maps = [], [], []
        for position, given in enumerate(arguments):
            array = given.array if isinstance(given, TensorMap) else given
            if not isinstance(array, np.ndarray):
                values.append(given)
                continue
            arrays.append(DeviceArray(array, CUDA, f"argument {position} of {name}"))
            if isinstance(given, TensorMap):
                value, kept = given.encoded(arrays[-1].address)
                maps.append(kept)
            else:
                value = ctypes.c_void_p(arrays[-1].address)
            values.append(value)
        self.launch_addresses(
            name, [*_extents(grid), *_extents(block)], values, dynamic_shared, options
        )
        for array in arrays:
            array.copy_back()

    def launch_addresses(self, name, extents, values, dynamic_shared, options=None) -> None:
        """:meth:`launch` for arguments that are in memory already."""
        if name not in self.bounds:
            raise EmulationError(f"no kernel {name}: there are {sorted(self.bounds)}")
        threads = extents[3] * extents[4] * extents[5]
        bound = self.bounds[name]
        if bound is not None and threads > bound:
            raise EmulationError(f"{name}: {threads} threads, compiled for {bound} at most")
        options = options or Options()
        message = ctypes.create_string_buffer(4096)
        failed = self._library[f"tbn_launch_{name}"](
            (_Argument * max(len(values), 1))(*map(_argument, values)),
            len(values),
            (ctypes.c_uint * 6)(*extents),
            ctypes.c_size_t(dynamic_shared),
            ctypes.byref(_Options(ORDERS[options.order], options.seed, int(options.early_copies))),
            message,
            ctypes.c_size_t(len(message)),
        )
        if failed:
            raise EmulationError(self._explained(f"{name}: {message.value.decode()}"))

    def _explained(self, message: str) -> str:
        """A message with the lines of the source that it speaks of."""
        at = re.search(r"code\+(0x[0-9a-f]+)", message)
        if at and shutil.which("addr2line"):
            frames = subprocess.run(
                ["addr2line", "-i", "-e", str(self._path), at[1]],
                capture_output=True,
                text=True,
                check=False,
            ).stdout
            # Innermost first; those of the emulator's headers say nothing.
            found = re.search(r"(?:kernel\.cu|\.cpp):(\d+)", frames)
            if found:
                message = message.replace(at[0], f"line {found[1]}")
        lines = self.source.splitlines()
        for number in sorted({int(n) for n in re.findall(r"line (\d+)", message)}):
            if 0 < number <= len(lines):
                message += f"\n  {number}: {lines[number - 1].strip()}"
        return message


class _Value(ctypes.Union):
    _fields_ = (
        ("integer", ctypes.c_int64),
        ("real", ctypes.c_double),
        ("pointer", ctypes.c_void_p),
    )


class _Argument(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int64), ("value", _Value))


class _Options(ctypes.Structure):
    _fields_ = (("order", ctypes.c_int), ("seed", ctypes.c_int), ("early_copies", ctypes.c_int))


def _argument(value) -> _Argument:
    if isinstance(value, ctypes.c_void_p):
        return _Argument(2, _Value(pointer=value.value))
    if isinstance(value, float | np.floating):
        return _Argument(1, _Value(real=float(value)))
    return _Argument(0, _Value(integer=int(value)))


def _extents(given: Sequence[int] | int) -> list[int]:
    extents = [given] if isinstance(given, int) else list(given)
    return extents + [1] * (3 - len(extents))
