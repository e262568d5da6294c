"""Checks of every kernel with many configurations: on a GPU, or small on the CUDA emulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from tbn_tvm.bench.cuda_build import Request, target_of
from tbn_tvm.testing import products
from tbn_tvm.testing.products import Problem, covering


@dataclass(frozen=True, eq=False)
class Check:
    """A kernel with configurations, and the batches it is tried on."""

    request: Request
    problem: Problem
    batches: tuple[int, ...]

    @property
    def key(self) -> str:
        """Names the check."""
        geometry = self.request.workload.product.geometry
        configs = "; ".join(
            " ".join(f"{name}={value}" for name, value in config.items())
            for config in self.request.configs
        )
        batch = self.request.workload.batch
        return (
            f"{self.request.kernel} {geometry.m}x{geometry.n} q={geometry.q} "
            f"batch={'any' if batch is None else batch} {self.request.workload.dtype} [{configs}]"
        )

    def run(self, function: Callable) -> None:
        """Compare with float64.

        Parameters
        ----------
        function : callable
            Takes NumPy arrays, of which it changes the last.

        Raises
        ------
        AssertionError
            Where an output is wrong.
        """
        kernel = _kernels()[self.request.kernel]
        words = kernel.layout(self.problem.tile, self.request.workload, self.request.configs)
        for batch in self.batches:
            self.problem.check(function, words, batch)

    def emulated(self) -> None:
        """Run on the CUDA emulator, which takes a C++ compiler and no GPU."""
        from tbn_tvm.testing.cuda_emulator import Emulated

        kernel = _kernels()[self.request.kernel]
        func = kernel.prim_func(self.request.workload, self.request.configs)
        self.run(Emulated(func, {"kind": "cuda", "arch": self.request.arch}))


def on_device(function: Callable) -> Callable:
    """A loaded kernel as a function of NumPy arrays, on PyTorch's stream."""
    import torch
    import tvm_ffi

    from tbn_tvm.bench.cuda_timing import on_torch_stream

    def call(*arrays: np.ndarray) -> None:
        tensors = [_to_torch(array).cuda() for array in arrays]
        with on_torch_stream():
            function(*map(tvm_ffi.from_dlpack, tensors))
        torch.cuda.synchronize()
        arrays[-1][...] = _to_numpy(tensors[-1], arrays[-1].dtype)

    return call


def _to_torch(array: np.ndarray):
    import torch

    if array.dtype.name == "bfloat16":  # which torch.from_numpy does not know
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _to_numpy(tensor, dtype: np.dtype) -> np.ndarray:
    import torch

    if dtype.name == "bfloat16":
        return tensor.cpu().view(torch.int16).numpy().view(dtype)
    return tensor.cpu().numpy()


def checks(arch: str, configs: int = 6) -> list[Check]:
    """Checks of all kernels that an architecture has.

    Parameters
    ----------
    arch : str
        ``sm_90a`` for one.
    configs : int
        Configurations of each kernel, shape and regime; 0 for none but the defaults.
    """
    from tbn_tvm.schedules.families import family_of

    family = family_of(target_of(arch))
    made = []
    for name, problem, batches in _problems():
        workload = replace(problem.workload, features=family.features)
        if not any(rule.kernel == name and rule.fits(workload) for rule in family.rules):
            continue
        problem = replace(problem, workload=workload)
        for chosen in _configurations(_kernels()[name], workload, configs):
            request = Request(name, workload, chosen, arch, ("check",) * len(chosen))
            made.append(Check(request, problem, batches))
    return made


def _problems() -> Iterator[tuple[str, Problem, tuple[int, ...]]]:
    """Kernels with small products that have edges: rows, columns and samples that fill no block."""
    dense, convolution = products.dense, products.convolution
    for name in ("dense_wgmma", "dense_mma", "dense_simt"):
        yield name, dense(352, 200, 4, 5), (5,)
        yield name, dense(288, 328, 2, 150, "bfloat16", bias=False), (150,)
        yield name, dense(288, 136, 4), (1, 9, 300)
    yield "dense_mma", dense(96, 75, 4, 40), (40,)
    yield "dense_simt", dense(96, 75, 4, 40, "float32"), (40,)
    yield "dense_segments", dense(24, 96, 96, 5), (5,)
    yield "dense_segments", dense(30, 50, 4), (1, 7)
    yield "conv_mma", convolution(96, 40, (3, 3), (11, 19), 4, 2, padding=(1, 1)), (2,)
    yield (
        "conv_mma",
        convolution(64, 64, (3, 3), (9, 9), 2, 3, "bfloat16", strides=(2, 2), groups=2),
        (3,),
    )
    yield "conv_simt", convolution(48, 12, (3, 3), (7, 9), 4, 2, "float32", padding=(1, 1)), (2,)


def _configurations(kernel, workload, count: int) -> Iterator[tuple[dict[str, int], ...]]:
    """The defaults, then configurations that differ from them in one regime."""
    regimes = kernel.regimes(workload)
    defaults = tuple(kernel.default(regime) for regime in regimes)
    yield defaults
    for index, regime in enumerate(regimes):
        others = (dict(config) for config in kernel.configs(regime))
        for config in covering((c for c in others if c != defaults[index]), count):
            yield (*defaults[:index], dict(config), *defaults[index + 1 :])


def _kernels() -> dict:
    from tbn_tvm.schedules.cuda import KERNELS

    return KERNELS
