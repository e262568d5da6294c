"""Times on a GPU: replays of CUDA graphs between device events, operands rotated past the cache.

Kernels of a few microseconds are shorter than what launching them takes on the host, so a graph of
many calls is captured and its replays are timed. Each call in it has operands of its own, so many
that none is still in the L2 cache when its turn comes again. Contenders take turns, and medians are
reported with the spread they were taken from.

Streams: TVM launches on the stream that TVM-FFI has as the current one of the thread and device
(``libtvm_runtime_cuda`` reads it with ``TVMFFIEnvGetStream``), which knows nothing of PyTorch's
unless it is told so. :func:`on_torch_stream` tells it, so that PyTorch's capture and events see
TVM's launches. TVM's tensors are made from PyTorch's beforehand (``tvm_ffi.from_dlpack``, no copy):
as arguments they leave the stream alone, and a call is nothing but the launch.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

ALIGNMENT = 512
"""Bytes to which each copy of an operand is aligned, as CUDA's allocations are."""

MOST_COPIES = 4096
FEWEST_COPIES = 4
MOST_BYTES = 6 << 30
"""Memory that the copies of one contender's operands may take."""

TURNS = 15
TURN_SECONDS = 2e-3
_CALLS = 20
"""A graph has at least so many calls, unless they are long."""


@dataclass(frozen=True)
class Time:
    """Seconds of one call: the median of the turns, and the fastest and slowest quarter's edge."""

    median: float
    low: float
    high: float
    copies: int
    cold: bool

    @property
    def spread(self) -> float:
        """The middle half's width over the median."""
        return (self.high - self.low) / self.median

    def to_dict(self) -> dict:
        """For JSON, in microseconds."""
        return {
            "us": self.median * 1e6,
            "low_us": self.low * 1e6,
            "high_us": self.high * 1e6,
            "copies": self.copies,
            "cold": self.cold,
        }


@dataclass(frozen=True)
class Ceilings:
    """What the device does at most, as measured.

    Attributes
    ----------
    bandwidth : float
        Bytes a second, read and written, of a large copy on the device.
    rates : dict of str to float
        Operations a second of a large matrix product, by dtype.
    l2 : int
        Bytes of the L2 cache.
    """

    bandwidth: float
    rates: dict[str, float]
    l2: int

    def to_dict(self) -> dict:
        """For JSON."""
        return asdict(self)

    def floor(self, nbytes: int, operations: int, dtype: str) -> tuple[float, float]:
        """Seconds that moving so many bytes, and so many operations, take at least."""
        return nbytes / self.bandwidth, operations / self.rates[dtype]


@contextlib.contextmanager
def on_torch_stream():
    """Within it, TVM launches on PyTorch's current stream."""
    import torch
    import tvm_ffi

    stream = torch.cuda.current_stream()
    device = tvm_ffi.device(f"cuda:{stream.device_index}")
    with tvm_ffi.use_raw_stream(device, stream.cuda_stream):
        yield


def copies_for(nbytes: int, l2: int) -> int:
    """How many operand sets of ``nbytes`` each pass twice through a cache of ``l2`` bytes."""
    wanted = max(FEWEST_COPIES, math.ceil(2 * l2 / max(nbytes, 1)))
    affordable = max(1, MOST_BYTES // max(nbytes, 1))
    return min(wanted, affordable, MOST_COPIES)


def rotated(tensor, copies: int, fill: Callable | None = None) -> list:
    """Copies of a tensor at addresses of their own.

    Parameters
    ----------
    tensor : torch.Tensor
        Contiguous; gives shape, dtype and, without ``fill``, the values.
    copies : int
        How many.
    fill : callable, optional
        Fills the block of all copies in place (``Tensor.normal_`` for one).
    """
    import torch

    per = ALIGNMENT // tensor.element_size()
    pitch = -(-tensor.numel() // per) * per
    block = torch.empty((copies, pitch), dtype=tensor.dtype, device=tensor.device)
    if fill is not None:
        fill(block)
    else:
        # A view of bits: PyTorch copies few dtypes besides those it computes with.
        bits = tensor.view(-1).view(torch.uint8)
        block.view(torch.uint8)[:, : bits.numel()] = bits
    return [block[i, : tensor.numel()].view(tensor.shape) for i in range(copies)]


class Replay:
    """A graph of calls.

    Parameters
    ----------
    calls : sequence of callable
        Each launches work on PyTorch's current stream. They are run once before they are captured:
        modules are loaded and libraries choose their algorithms then.
    cold : bool
        Whether their operands exceed the cache.
    stream : callable
        Makes the context that calls run in; where none of them is TVM's it may be
        ``contextlib.nullcontext``, and TVM need not be installed.
    """

    def __init__(
        self,
        calls: Sequence[Callable[[], object]],
        cold: bool = True,
        stream: Callable = on_torch_stream,
    ) -> None:
        import torch

        self.copies, self.cold = len(calls), cold
        self.count = max(1, -(-_CALLS // len(calls))) * len(calls)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), stream():
            for call in calls[:FEWEST_COPIES]:
                call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph), stream():
            for turn in range(self.count):
                calls[turn % len(calls)]()
        torch.cuda.synchronize()

    def run(self) -> None:
        """Replay once, to the end."""
        import torch

        self.graph.replay()
        torch.cuda.synchronize()

    def seconds(self, replays: int) -> float:
        """Of one call."""
        import torch

        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(replays):
            self.graph.replay()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) * 1e-3 / (replays * self.count)


def measure(
    replays: Sequence[Replay], turns: int = TURNS, turn_seconds: float = TURN_SECONDS
) -> list[Time]:
    """Time graphs in turns, so that all meet the same clocks and temperatures."""
    counts = []
    for replay in replays:
        replay.seconds(1)
        once = replay.seconds(1) * replay.count
        counts.append(max(1, min(1000, round(turn_seconds / max(once, 1e-7)))))
    samples: list[list[float]] = [[] for _ in replays]
    for _ in range(turns):
        for replay, count, kept in zip(replays, counts, samples, strict=True):
            kept.append(replay.seconds(count))
    return [_time(kept, replay) for kept, replay in zip(samples, replays, strict=True)]


def _time(samples: list[float], replay: Replay) -> Time:
    if len(samples) < 2:
        return Time(samples[0], samples[0], samples[0], replay.copies, replay.cold)
    low, _, high = statistics.quantiles(samples, n=4)
    return Time(statistics.median(samples), low, high, replay.copies, replay.cold)


def warm_up(seconds: float = 0.2) -> None:
    """Keep the device busy until its clocks have risen."""
    import torch

    a = torch.randn(2048, 2048, device="cuda", dtype=torch.float16)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        a @ a
        torch.cuda.synchronize()


def ceilings() -> Ceilings:
    """Measure what the device can do; takes about a second."""
    import torch

    warm_up()
    bandwidth = _copy_bandwidth()
    rates = {name: _product_rate(name) for name in ("float16", "bfloat16", "float32")}
    torch.cuda.empty_cache()
    return Ceilings(bandwidth, rates, _l2())


def _copy_bandwidth() -> float:
    import torch

    source = torch.randint(0, 255, (2 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    (copy,) = measure([Replay([lambda: target.copy_(source)])], 9, 0)
    return 2 * source.numel() / copy.median


def _product_rate(dtype: str) -> float:
    import torch

    # Large enough to fill the device for a millisecond and more.
    size = 4096 if dtype == "float32" else 8192
    wanted = getattr(torch, dtype)
    a, b = (torch.randn(size, size, device="cuda").to(wanted) for _ in range(2))
    c = torch.empty_like(a)
    (product,) = measure([Replay([lambda: torch.mm(a, b, out=c)])], 9, 0)
    return 2 * size**3 / product.median


def _l2() -> int:
    import torch

    return int(getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0) or 64 << 20)
