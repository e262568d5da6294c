"""Tiled products with operands to test kernels with, their outputs in float64 and the error
that is allowed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np

from tbn_tvm.schedules.fused import FusedKernel
from tbn_tvm.schedules.reference import AlphaLayout, Product, Window
from tbn_tvm.schedules.rules import DENSE, Workload
from tbn_tvm.tiling import Geometry, pack_bits

GPU_FEATURES = frozenset({"sm_80", "sm_90", "sm_90a"})

ROUNDING = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative error of rounding to a dtype; float32 is what sums are kept in anyway."""

SUMMATION = 2.0**-19
"""Allowed error of a float32 sum, relative to the sum of its terms' magnitudes."""


def numpy_dtype(name: str) -> np.dtype:
    """NumPy's dtype of a name, bfloat16 included."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


@dataclass(frozen=True, eq=False)
class Problem:
    """A tiled product with random operands.

    Attributes
    ----------
    workload : Workload
        What kernels are asked for; its batch is None for a function of any batch.
    signs : numpy.ndarray
        bool, shape ``(q,)``: the tile.
    alphas, bias : numpy.ndarray
        float32; ``bias`` is there whether the workload adds one or not.
    seed : int
        Of the activations.
    """

    workload: Workload
    signs: np.ndarray
    alphas: np.ndarray
    bias: np.ndarray
    seed: int

    @property
    def tile(self) -> np.ndarray:
        """The packed tile."""
        return pack_bits(self.signs)

    def weight(self) -> np.ndarray:
        """The dense expansion in float64, ``(m, n)``, by the definition of the format."""
        product = self.workload.product
        m, n, q = product.geometry.m, product.geometry.n, product.geometry.q
        element = np.arange(m * n).reshape(m, n)
        use, row = element // q, element // n
        which = {
            AlphaLayout.LAYER: 0 * use,
            AlphaLayout.TILE: use,
            AlphaLayout.ROW: row,
            AlphaLayout.SEGMENT: row * product.geometry.segments + use - use[:, :1],
        }[product.alpha_layout]
        return np.where(self.signs[element % q], 1.0, -1.0) * self.alphas[which].astype("float64")

    def activations(self, batch: int) -> np.ndarray:
        """Random activations for a batch."""
        workload = self.workload
        shape = [batch, workload.product.geometry.n]
        if not workload.is_dense:
            shape = [batch, workload.channels * workload.product.groups, *workload.extents]
        values = np.random.default_rng((self.seed, batch)).normal(size=shape)
        return values.astype(numpy_dtype(workload.dtype))

    def outputs(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Outputs in float64, and for each the sum of its terms' magnitudes."""
        x, weight = x.astype("float64"), self.weight()
        multiply = _dense if self.workload.is_dense else _convolution
        y = multiply(x, weight, self.workload)
        magnitude = multiply(np.abs(x), np.abs(weight), self.workload)
        if self.workload.bias:
            bias = self.bias.astype("float64").reshape(-1, *[1] * (y.ndim - 2))
            y, magnitude = y + bias, magnitude + np.abs(bias)
        return y, magnitude

    def function(self, kernel: FusedKernel, configs: Sequence[Mapping[str, int]] | None = None):
        """The kernel's function and its words: by default with the configurations of the rules."""
        if configs is None:
            configs = [kernel.default(regime) for regime in kernel.regimes(self.workload)]
        configs = tuple(configs)
        words = kernel.layout(self.tile, self.workload, configs)
        shape, dtype = kernel.words_shape(self.workload, configs)
        assert (words.shape, words.dtype) == (shape, np.dtype(dtype))
        return kernel.prim_func(self.workload, configs), words

    def run(self, call: Callable, words: np.ndarray, x: np.ndarray) -> np.ndarray:
        """What ``call(*arrays)`` writes into outputs that were NaN before."""
        extents = () if self.workload.is_dense else self.workload.out_extents
        shape = (len(x), self.workload.product.geometry.m, *extents)
        y = np.full(shape, np.nan).astype(x.dtype)
        bias = [self.bias] if self.workload.bias else []
        call(x, words, self.alphas, *bias, y)
        return y

    def check(self, call: Callable, words: np.ndarray, batch: int) -> None:
        """Run a function on a batch and compare its outputs with float64.

        Raises
        ------
        AssertionError
            With the number of wrong outputs and the worst of them.
        """
        x = self.activations(batch)
        expected, magnitude = self.outputs(x)
        assert_close(self.run(call, words, x), expected, magnitude)


def assert_close(y: np.ndarray, expected: np.ndarray, magnitude: np.ndarray) -> None:
    """Check outputs against float64: one rounding to their dtype and one float32 sum.

    Parameters
    ----------
    y : numpy.ndarray
        A kernel's outputs.
    expected, magnitude : numpy.ndarray
        float64: the outputs, and the sums of magnitudes that they are made of.
    """
    allowed = ROUNDING[y.dtype.name] * np.abs(expected) + SUMMATION * (magnitude + 1)
    error = np.abs(y.astype("float64") - expected)
    wrong = ~(error <= allowed)  # NaN is wrong too
    if wrong.any():
        worst = np.unravel_index(np.argmax(np.where(wrong, error / allowed, 0)), y.shape)
        if np.isnan(y[wrong].astype("float64")).any():
            worst = tuple(np.argwhere(np.isnan(y.astype("float64")))[0])
        raise AssertionError(
            f"{wrong.sum()} of {y.size} outputs are wrong; y{list(map(int, worst))} is {y[worst]} "
            f"and should be {expected[worst]:.6g}, give or take {allowed[worst]:.2g}"
        )


def dense(
    m: int,
    n: int,
    p: int,
    batch: int | None = None,
    dtype: str = "float16",
    alpha: AlphaLayout = AlphaLayout.TILE,
    bias: bool = True,
    seed: int = 0,
) -> Problem:
    """A dense product; a ``batch`` of None makes functions for any batch."""
    return _problem(m, n, p, alpha, seed, DENSE, batch, dtype, bias)


def convolution(
    out_channels: int,
    channels: int,
    kernel: Sequence[int],
    extents: Sequence[int],
    p: int,
    batch: int | None = None,
    dtype: str = "float16",
    alpha: AlphaLayout = AlphaLayout.TILE,
    bias: bool = True,
    groups: int = 1,
    strides: Sequence[int] | None = None,
    padding: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
    seed: int = 0,
) -> Problem:
    """A convolution; ``padding`` is one number an axis, or before each axis and then after."""
    rank = len(kernel)
    padding = tuple(padding or (0,) * rank)
    window = Window(
        tuple(kernel),
        tuple(strides or (1,) * rank),
        padding if len(padding) == 2 * rank else padding * 2,
        tuple(dilation or (1,) * rank),
    )
    n = channels // groups * int(np.prod(kernel))
    operator = f"relax.tbn.tiled_conv{rank}d"
    problem = _problem(out_channels, n, p, alpha, seed, operator, batch, dtype, bias, groups)
    workload = replace(problem.workload, window=window, extents=tuple(extents))
    return replace(problem, workload=workload)


def _problem(m, n, p, alpha, seed, operator, batch, dtype, bias, groups=1) -> Problem:
    assert m * n % p == 0, "p divides the number of elements"
    geometry = Geometry(m, n, m * n // p)
    count = {
        AlphaLayout.LAYER: 1,
        AlphaLayout.TILE: p,
        AlphaLayout.ROW: m,
        AlphaLayout.SEGMENT: m * geometry.segments,
    }[alpha]
    rng = np.random.default_rng(seed)
    workload = Workload(
        operator, Product(geometry, count, groups), batch, dtype, GPU_FEATURES, bias=bias
    )
    return Problem(
        workload,
        rng.integers(0, 2, geometry.q).astype(bool),
        rng.uniform(0.1, 2, count).astype("float32"),
        rng.normal(size=m).astype("float32"),
        seed,
    )


def _dense(x: np.ndarray, weight: np.ndarray, _workload: Workload) -> np.ndarray:
    return x @ weight.T


def _convolution(x: np.ndarray, weight: np.ndarray, workload: Workload) -> np.ndarray:
    window, groups = workload.window, workload.product.groups
    rank = len(window.kernel)
    spatial = tuple(range(2, 2 + rank))
    around = list(zip(window.padding[:rank], window.padding[rank:], strict=True))
    x = np.pad(x, [(0, 0), (0, 0), *around])
    reach = [(k - 1) * d + 1 for k, d in zip(window.kernel, window.dilation, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, reach, spatial)
    steps = [slice(None, None, step) for step in (*window.strides, *window.dilation)]
    windows = windows[(slice(None), slice(None), *steps)]
    # (B, C, *out, *kernel) -> (B, *out, C, *kernel), cut into groups.
    windows = np.moveaxis(windows, 1, 1 + rank)
    windows = windows.reshape(*windows.shape[: 1 + rank], groups, -1)
    rows = weight.reshape(groups, -1, weight.shape[1])
    y = np.einsum("...gn,grn->...gr", windows, rows, optimize=True)
    return np.moveaxis(y.reshape(*y.shape[:-2], -1), -1, 1)


def covering(
    configs: Iterable[Mapping[str, int]], count: int, seed: int = 0
) -> list[Mapping[str, int]]:
    """A sample of configurations in which as many pairs of parameter values occur as may be.

    Parameters
    ----------
    configs : iterable of mapping
        All of them, with equal keys.
    count : int
        How many are wanted; fewer are returned where fewer cover all pairs.
    seed : int
        Decides between equals.
    """
    pool = list(configs)
    random.Random(seed).shuffle(pool)
    pairs = {id(c): set(itertools.combinations(sorted(c.items()), 2)) or {()} for c in pool}
    missing = set().union(*pairs.values()) if pool else set()
    chosen = []
    while missing and len(chosen) < count:
        best = max(pool, key=lambda c: len(pairs[id(c)] & missing))
        chosen.append(best)
        missing -= pairs[id(best)]
    return chosen
