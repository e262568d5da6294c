"""Layers on this CPU against PyTorch.

Both sides run on the same threads, take turns, and have their outputs compared first. Times are
medians; only ratios of one run mean anything on a shared machine.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

SHAPES = ((4096, 4096), (1024, 1024), (128, 784))
"""Outputs and inputs of the dense layers."""

BATCHES = (1, 8, 64, 256)
FACTORS = (2, 4, 8, 16)
DTYPES = ("float32", "float16")
_SECONDS = 0.4
_TURNS = 9
_TOLERANCE = {"float32": 1e-4, "float16": 5e-3}


@dataclass(frozen=True)
class Conv:
    """A convolution of square images, padded to keep their size.

    Attributes
    ----------
    outputs, inputs : int
        Channels.
    kernel, extent : int
        Sides of the window and of the image.
    groups : int
        Groups of channels.
    """

    outputs: int
    inputs: int
    kernel: int
    extent: int
    groups: int = 1

    def __str__(self) -> str:
        text = f"conv {self.outputs}x{self.inputs}x{self.kernel}x{self.kernel} on {self.extent}^2"
        return text if self.groups == 1 else f"{text} in {self.groups} groups"


CONVS = (
    Conv(64, 64, 3, 56),
    Conv(256, 256, 3, 14),
    Conv(64, 64, 3, 32),
    Conv(128, 128, 3, 56, 128),
)
CONV_BATCHES = (1, 8)


@dataclass(frozen=True)
class Row:
    """One layer at one batch.

    Attributes
    ----------
    layer : str
        ``MxN`` of a dense layer; channels, window and image of a convolution.
    dtype : str
        Of our activations; sums are float32 always.
    m, n, p, batch : int
        Outputs, inputs of one, compression factor, samples.
    ours_us, float32_us, bfloat16_us : float
        Median microseconds of one call: ours, and PyTorch's in two dtypes.
    over_float32, over_bfloat16 : float
        How many times faster ours is.
    bandwidth_share : float
        Weight bytes moved over the time they take at the measured copy bandwidth: 1 is the
        limit of a layer that reads its stored weights once.
    arithmetic_share : float
        Multiply-adds of the unique rows over what PyTorch's float32 product of two large
        matrices does in the same time; over 1 where lookups beat the multipliers.
    """

    layer: str
    dtype: str
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


def machine() -> dict:
    """What was measured on: the CPU, as it and LLVM name it, and the threads of both sides."""
    import torch
    import tvm
    from tvm.target import codegen

    return {
        "cpu": _cpu_name(),
        "llvm_cpu": codegen.llvm_get_system_cpu(),
        "threads": torch.get_num_threads(),
        "tvm_threads": int(tvm.get_global_func("runtime.NumThreads")()),
    }


def measure(
    shapes=SHAPES,
    factors=FACTORS,
    batches=None,
    convs=CONVS,
    dtypes=DTYPES,
    report: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Run the benchmark.

    Parameters
    ----------
    shapes : sequence of (int, int)
        Outputs and inputs of dense layers.
    factors, batches : sequence of int
        Values of p, and numbers of samples; the default is :data:`BATCHES` of dense layers and
        :data:`CONV_BATCHES` of convolutions.
    convs : sequence of Conv
        Convolutions.
    dtypes : sequence of str
        Of our activations.
    report : callable, optional
        Called with each row as it is measured.
    """
    import torch

    limits = _copy_bandwidth(), _multiply_rate(torch)
    rows = []
    for layer in (*shapes, *convs):
        for p in factors:
            if (layer.outputs if isinstance(layer, Conv) else layer[0]) % p:
                continue
            default = CONV_BATCHES if isinstance(layer, Conv) else BATCHES
            for row in _layer(torch, layer, p, batches or default, dtypes, limits):
                rows.append(row)
                if report is not None:
                    report(row)
    return rows


def _layer(torch, layer, p: int, batches, dtypes, limits) -> Iterator[Row]:
    from tbn_tvm.compiler import compile as compile_model
    from tbn_tvm.nn import TiledConv2d, TiledLinear, freeze

    bandwidth, rate = limits
    torch.manual_seed(0)
    if isinstance(layer, Conv):
        tiled = TiledConv2d(
            layer.inputs,
            layer.outputs,
            layer.kernel,
            padding=layer.kernel // 2,
            groups=layer.groups,
            bias=False,
            p=p,
        )
        sample, positions = (layer.inputs, layer.extent, layer.extent), layer.extent**2

        def compute(x, weight):
            padding = layer.kernel // 2
            return torch.nn.functional.conv2d(x, weight, None, 1, padding, 1, layer.groups)
    else:
        tiled = TiledLinear(layer[1], layer[0], bias=False, p=p)
        sample, positions, compute = (layer[1],), 1, torch.nn.functional.linear
    groups = layer.groups if isinstance(layer, Conv) else 1
    name = str(layer) if isinstance(layer, Conv) else f"{layer[0]}x{layer[1]}"
    stored = tiled.tiled_tensor()
    weight = torch.from_numpy(stored.expand())
    half = weight.bfloat16()
    macs = stored.geometry.unique_rows(groups) * stored.n * positions
    frozen = freeze(torch.nn.Sequential(tiled))
    for dtype in dtypes:
        program = torch.export.export(
            frozen,
            (torch.zeros(2, *sample, dtype=getattr(torch, dtype)),),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )
        artifact = compile_model(program, "host")
        for batch in batches:
            x = torch.randn(batch, *sample)
            x_half = x.bfloat16()
            call = artifact.prepare(x.numpy().astype(dtype))
            expected = compute(x, weight).numpy()
            error = np.abs(call() - expected).max() / np.abs(expected).max()
            if error > _TOLERANCE[dtype]:
                raise AssertionError(f"{name}, {dtype}, p = {p}, batch {batch}: off by {error:.1e}")
            with torch.inference_mode():
                ours, float32, bfloat16 = _medians(
                    call.run,
                    lambda x=x: compute(x, weight),
                    lambda x=x_half: compute(x, half),
                )
            yield Row(
                name,
                dtype,
                stored.m,
                stored.n,
                p,
                batch,
                ours * 1e6,
                float32 * 1e6,
                bfloat16 * 1e6,
                float32 / ours,
                bfloat16 / ours,
                stored.nbytes / bandwidth / ours,
                batch * macs / rate / ours,
            )


def _cpu_name() -> str:
    """The CPU's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


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
