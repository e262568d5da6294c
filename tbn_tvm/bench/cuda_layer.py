"""A random tiled layer in PyTorch: operands, the dense weight, and what the outputs should be."""

from __future__ import annotations

import numpy as np
import torch

from tbn_tvm.bench.cuda_build import Request
from tbn_tvm.bench.cuda_cases import Case
from tbn_tvm.tiling import pack_bits

TOLERANCE = {"float16": 2e-3, "bfloat16": 1e-2, "float32": 1e-5}
"""Largest norm of the error over that of the outputs: a few roundings to the dtype."""


class Layer:
    """A layer of a case's geometry, with random bits and scalars.

    Parameters
    ----------
    case : Case
        The geometry.
    device : str
        Where its tensors are.
    """

    def __init__(self, case: Case, device: str = "cuda") -> None:
        self.case = case
        self.device = device
        self.dtype = getattr(torch, case.dtype)
        product = case.workload(frozenset()).product
        self.geometry, self.macs = product.geometry, product.macs
        random = np.random.default_rng(0)
        self.bits = random.integers(0, 2, self.geometry.q, np.uint8).astype(bool)
        self._bits = torch.from_numpy(self.bits).to(device)
        alphas = random.uniform(0.5, 1.5, case.p).astype(np.float32)
        self.alpha = torch.from_numpy(alphas).to(device)
        self._words: dict[str, torch.Tensor] = {}

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of the activations."""
        case = self.case
        return (case.batch, case.n) + (() if case.side is None else (case.side,) * 2)

    @property
    def y_shape(self) -> tuple[int, ...]:
        """Shape of the outputs."""
        return (self.case.batch, self.case.m, *self.x_shape[2:])

    @property
    def nbytes(self) -> int:
        """The fewest bytes a call has to move: stored weights, activations in and out."""
        values = np.prod(self.x_shape) + np.prod(self.y_shape)
        return int(values) * self.dtype.itemsize + -(-self.geometry.q // 8) + 4 * self.case.p

    @property
    def operations(self) -> int:
        """The fewest operations, two a multiply-add: those of the unique rows."""
        pixels = int(np.prod(self.x_shape[2:]))
        return 2 * self.case.batch * pixels * self.macs

    def words(self, request: Request) -> torch.Tensor:
        """The tile as a kernel reads it."""
        from tbn_tvm.schedules.cuda import KERNELS

        # Laying out a large tile takes seconds. Dense kernels do it alike for all configurations;
        # would one not, its outputs were wrong, and they are checked.
        if request.kernel not in self._words:
            kernel = KERNELS[request.kernel]
            words = kernel.layout(pack_bits(self.bits), request.workload, request.configs)
            words = torch.from_numpy(np.ascontiguousarray(words)).to(self.device)
            if not request.workload.is_dense:
                return words
            self._words[request.kernel] = words
        return self._words[request.kernel]

    def activations(self) -> torch.Tensor:
        """Random activations."""
        return torch.randn(self.x_shape, device=self.device).to(self.dtype)

    def outputs(self) -> torch.Tensor:
        """Outputs that nobody wrote: NaN."""
        return torch.full(self.y_shape, float("nan"), dtype=self.dtype, device=self.device)

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        """The dense weight, ``(m, n)`` or ``(m, n, taps, taps)``, by the format's definition."""
        dense = self.alpha.to(dtype)[:, None] * (self._bits.to(dtype) * 2 - 1)
        taps = () if self.case.side is None else (self.case.taps,) * 2
        return dense.view(self.case.m, self.case.n, *taps)

    def expected(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs for activations: in float64, of convolutions on a GPU in float32."""
        if self.case.side is None:
            return x.double() @ self.weight(torch.float64).t()
        # cuDNN has no fast convolution in float64, and its float32 may be TF32.
        wide = torch.float64 if self.device == "cpu" else torch.float32
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return torch.nn.functional.conv2d(
                x.to(wide), self.weight(wide), padding=self.case.taps // 2
            )

    def error(self, y: torch.Tensor, x: torch.Tensor) -> float:
        """The norm of the error over that of the outputs; NaN where any output is."""
        expected = self.expected(x).double()
        return float((y.double() - expected).norm() / expected.norm())

    def is_right(self, error: float) -> bool:
        """Whether an error is one of rounding; NaN is not."""
        return error <= TOLERANCE[self.case.dtype]
