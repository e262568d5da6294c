"""CUDA kernels on the CPU: the source that TVM emits, run thread by thread.

Every CUDA thread is a fiber, shared memory starts as NaN, barriers and warp collectives are real,
asynchronous copies land as late as they may, and what a GPU would not do (deadlock, misaligned or
stray access, launches past its limits) raises :class:`EmulationError`. See ``emulator.h``.

Threads give way at barriers and collectives only: one that spins on memory for another never ends.
A hazard may show in some orders of threads only, so run kernels in :data:`EVERY_WAY`.
"""

from tbn_tvm.testing.cuda_emulator.build import EmulationError, compiler
from tbn_tvm.testing.cuda_emulator.execution import Emulated, cuda_source, run
from tbn_tvm.testing.cuda_emulator.program import EVERY_WAY, Options, Program
from tbn_tvm.testing.cuda_emulator.tensor_map import TensorMap
from tbn_tvm.testing.nvcc import compile_cuda

__all__ = [
    "EVERY_WAY",
    "Emulated",
    "EmulationError",
    "Options",
    "Program",
    "TensorMap",
    "compile_cuda",
    "compiler",
    "cuda_source",
    "run",
]
