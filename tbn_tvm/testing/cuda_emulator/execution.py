"""Host code of TVM with emulated kernels."""

from __future__ import annotations

import tvm
from tvm import tirx as tir

from tbn_tvm.testing import device_memory
from tbn_tvm.testing.cuda_emulator import tensor_map
from tbn_tvm.testing.cuda_emulator.program import Options, Program
from tbn_tvm.testing.lowering import lower

SM90 = {"kind": "cuda", "arch": "sm_90"}


class Emulated:
    """A module compiled for CUDA, to be called on NumPy arrays.

    Parameters
    ----------
    mod : tvm.tirx.PrimFunc or tvm.IRModule
        With thread bindings; shapes may be symbolic.
    target : dict or tvm.target.Target
        A CUDA target.
    """

    def __init__(self, mod: tir.PrimFunc | tvm.IRModule, target=SM90):
        self._lowered = lower(mod, target)
        self.source = self._lowered.source
        self.launches: list[tuple[str, list[int], int]] = []
        self._program = Program(self.source)
        self._options = Options()

    def __call__(
        self, *arrays, entry: str | None = None, options: Options | None = None
    ) -> list[tuple[str, list[int], int]]:
        """Run a host function and the kernels it launches.

        Parameters
        ----------
        *arrays : numpy.ndarray or int or float
            Changed in place.
        entry : str, optional
            The function; may be left out where there is one.
        options : Options, optional
            Of the emulator.

        Returns
        -------
        list of (str, list of int, int)
            The launches: kernel, extents of grid and block, bytes of dynamic shared memory.
        """
        entry = self._lowered.entry(entry)
        self._options = options or Options()
        self.launches = []
        packed = {name: self._packed(kernel) for name, kernel in self._lowered.kernels.items()}
        packed[tensor_map.ENCODE] = tensor_map.encode
        device_memory.call(self._lowered.host, entry, list(arrays), device_memory.CUDA, packed)
        return self.launches

    def _packed(self, kernel):
        def launched(*values):
            arguments, extents, shared = kernel.split(values)
            self.launches.append((kernel.name, extents, shared))
            self._program.launch_addresses(kernel.name, extents, arguments, shared, self._options)

        return launched


def run(
    mod: tir.PrimFunc | tvm.IRModule,
    arrays: list,
    target=SM90,
    *,
    entry: str | None = None,
    options: Options | None = None,
) -> list[tuple[str, list[int], int]]:
    """Compile, and call once: see :class:`Emulated`."""
    return Emulated(mod, target)(*arrays, entry=entry, options=options)


def cuda_source(mod: tir.PrimFunc | tvm.IRModule, target=SM90) -> str:
    """The CUDA C++ that TVM emits; neither a compiler nor a GPU is needed."""
    return lower(mod, target).source
