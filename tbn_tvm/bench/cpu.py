"""Dense layers on this CPU against PyTorch.

Both sides run on the same threads, take turns, and have their outputs compared first. Times are
medians; only ratios of one run mean anything on a shared machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np

SHAPES = ((4096, 4096), (1024, 1024), (128, 784))
"""Outputs and inputs of the layers."""

BATCHES = (1, 8, 64, 256)
FACTORS = (2, 4, 8, 16)
_SECONDS = 0.4
_TURNS = 9


@dataclass(frozen=True)
class Row:
    """One layer at one batch.

    Attributes
    ----------
    m, n, p, batch : int
        Outputs, inputs, compression factor, samples.
    ours_us, float32_us, bfloat16_us : float
        Median microseconds of one call: ours, and PyTorch's linear layer in two dtypes.
    over_float32, over_bfloat16 : float
        How many times faster ours is.
    bandwidth_share : float
        Weight bytes moved over the time they take at the measured copy bandwidth: 1 is the
        limit of a layer that reads its stored weights once.
    arithmetic_share : float
        Multiply-adds of the unique rows over what PyTorch's float32 product of two large
        matrices does in the same time; over 1 where lookups beat the multipliers.
    """

    m: int
    n: int
    p: int
    batch: int
    ours_us: float
    float32_us: float
    bfloat16_us: float
    over_float32: float
    over_bfloat16: float
    bandwidth_share: float
    arithmetic_share: float

    def to_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


def measure(
    shapes=SHAPES, factors=FACTORS, batches=BATCHES, report: Callable[[Row], None] | None = None
) -> list[Row]:
    """Run the benchmark.

    Parameters
    ----------
    shapes : sequence of (int, int)
        Outputs and inputs.
    factors, batches : sequence of int
        Values of p, and numbers of samples.
    report : callable, optional
        Called with each row as it is measured.
    """
    import torch

    limits = _copy_bandwidth(), _multiply_rate(torch)
    rows = []
    for m, n in shapes:
        for p in factors:
            if m % p:
                continue
            for row in _layer(torch, m, n, p, batches, limits):
                rows.append(row)
                if report is not None:
                    report(row)
    return rows


def _layer(torch, m: int, n: int, p: int, batches, limits) -> Iterator[Row]:
    from tbn_tvm.compiler import compile as compile_model
    from tbn_tvm.nn import TiledLinear, freeze

    bandwidth, rate = limits
    torch.manual_seed(0)
    layer = TiledLinear(n, m, bias=False, p=p)
    stored = layer.tiled_tensor()
    weight = torch.from_numpy(stored.expand())
    half = weight.bfloat16()
    program = torch.export.export(
        freeze(torch.nn.Sequential(layer)),
        (torch.zeros(2, n),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
    )
    artifact = compile_model(program, "host")
    for batch in batches:
        x = torch.randn(batch, n)
        x_half = x.bfloat16()
        call = artifact.prepare(x.numpy())
        expected = torch.nn.functional.linear(x, weight).numpy()
        error = np.abs(call() - expected).max() / np.abs(expected).max()
        if error > 1e-4:
            raise AssertionError(f"{m}x{n}, p = {p}, batch {batch}: off by {error:.1e}")
        with torch.inference_mode():
            ours, float32, bfloat16 = _medians(
                call.run,
                lambda x=x: torch.nn.functional.linear(x, weight),
                lambda x=x_half: torch.nn.functional.linear(x, half),
            )
        yield Row(
            m,
            n,
            p,
            batch,
            ours * 1e6,
            float32 * 1e6,
            bfloat16 * 1e6,
            float32 / ours,
            bfloat16 / ours,
            stored.nbytes / bandwidth / ours,
            batch * stored.geometry.unique_rows() * n / rate / ours,
        )


def _medians(*calls: Callable[[], object]) -> list[float]:
    """Seconds of one call of each, in turns, so that all meet the same disturbances."""
    repeats = []
    for call in calls:
        call()
        start = time.perf_counter()
        call()
        once = max(time.perf_counter() - start, 1e-7)
        repeats.append(max(1, int(_SECONDS / _TURNS / once)))
    samples: list[list[float]] = [[] for _ in calls]
    for _ in range(_TURNS):
        for call, count, kept in zip(calls, repeats, samples, strict=True):
            start = time.perf_counter()
            for _ in range(count):
                call()
            kept.append((time.perf_counter() - start) / count)
    return [statistics.median(kept) for kept in samples]


def _copy_bandwidth() -> float:
    """Bytes a second that a large copy reads."""
    source = np.ones(1 << 26, np.uint8)
    target = np.empty_like(source)
    (seconds,) = _medians(lambda: np.copyto(target, source))
    return source.nbytes / seconds


def _multiply_rate(torch) -> float:
    """Multiply-adds a second of PyTorch's float32 product of two large matrices."""
    a = torch.randn(1024, 1024)
    (seconds,) = _medians(lambda: a @ a)
    return 1024**3 / seconds
