"""Tiled layers on a GPU against cuBLAS and cuDNN, side by side in one process.

Outputs are checked before anything is timed, and a kernel whose outputs are wrong is not timed.
:mod:`tbn_tvm.bench.cuda_timing` says how times are taken.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tbn_tvm.bench.cuda_build import Builder, Built, Loader, full_arch, request_of
from tbn_tvm.bench.cuda_cases import Case
from tbn_tvm.bench.cuda_timing import Ceilings, Replay, Time
from tbn_tvm.errors import DeviceError, TbnError, ToolError


@dataclass(frozen=True)
class Row:
    """One layer at one batch.

    Attributes
    ----------
    case : Case
        The layer.
    kernel : str
        What computed it.
    configs, sources : tuple
        Its configurations, one a regime, and who chose each.
    ours : Time
        Of one call.
    rivals : dict of str to Time
        Of each way to call PyTorch.
    errors : dict of str to float
        Norm of the error over that of the outputs: ``ours`` and each rival's.
    bandwidth_share : float
        The fewest bytes that the layer has to move, at the measured copy bandwidth, over the time:
        1 is the limit.
    arithmetic_share : float
        Operations of the unique rows, at the measured rate of matrix products, over the time.
    """

    case: Case
    kernel: str
    configs: tuple
    sources: tuple
    ours: Time
    rivals: dict[str, Time]
    errors: dict[str, float]
    bandwidth_share: float
    arithmetic_share: float

    @property
    def rival(self) -> str:
        """The fastest rival."""
        return min(self.rivals, key=lambda name: self.rivals[name].median)

    @property
    def ratio(self) -> float:
        """How many times faster ours is than the fastest rival."""
        return self.rivals[self.rival].median / self.ours.median

    @property
    def limit_share(self) -> float:
        """The share of the limit that binds."""
        return max(self.bandwidth_share, self.arithmetic_share)

    def to_dict(self) -> dict:
        """For JSON."""
        return {
            "case": self.case.to_dict(),
            "kernel": self.kernel,
            "configs": list(self.configs),
            "sources": list(self.sources),
            "ours": self.ours.to_dict(),
            "rivals": {name: time.to_dict() for name, time in self.rivals.items()},
            "rival": self.rival,
            "ratio": self.ratio,
            "bandwidth_share": self.bandwidth_share,
            "arithmetic_share": self.arithmetic_share,
            "errors": self.errors,
        }


def require_device() -> str:
    """The architecture of the device present, with its own instructions.

    Raises
    ------
    DeviceError
        Where TVM or PyTorch sees none.
    """
    # PyTorch first: it brings the CUDA run time that TVM looks for.
    import torch

    from tbn_tvm import cuda

    hint = "; --dry-run shows what would be measured"
    if not torch.cuda.is_available():
        built = "" if torch.version.cuda else " (this PyTorch was built without CUDA)"
        raise DeviceError(f"no CUDA device to measure on{built}{hint}")
    try:
        cuda.require_device("the benchmark")
    except DeviceError as error:
        raise DeviceError(f"no CUDA device that TVM can use: {error}{hint}") from None
    return full_arch(cuda.device_arch())


def measure(
    cases: Sequence[Case],
    folder: Path,
    records=None,
    report: Callable[[Row | tuple[Case, str]], None] | None = None,
) -> list[Row]:
    """Build, check and time.

    Parameters
    ----------
    cases : sequence of Case
        What to measure.
    folder : Path
        Where built kernels are kept.
    records : tbn_tvm.schedules.records.Records, optional
        Measured configurations, which go before the rules' defaults.
    report : callable, optional
        Called with each row as it is measured, or with a case and why it has none.

    Raises
    ------
    DeviceError
        Where there is no GPU.
    """
    arch = require_device()
    from tbn_tvm.bench.cuda_timing import ceilings

    rows = []
    with Builder(folder) as builder, Loader(folder) as loader:
        pending = list(_submitted(cases, builder, arch, records))
        limits = ceilings()
        for case, wait in pending:
            try:
                row = measured(case, wait(), loader, limits)
            except TbnError as error:
                if report is not None:
                    report((case, str(error)))
                continue
            rows.append(row)
            if report is not None:
                report(row)
    return rows


def _submitted(cases, builder: Builder, arch: str, records) -> Iterator[tuple[Case, Callable]]:
    """Each case with a function that waits until its kernel is built."""
    for case in cases:
        try:
            future = builder.submit(request_of(case, arch, records))
            yield case, functools.partial(_built, future)
        except TbnError as error:
            yield case, functools.partial(_raise, error)


def _built(future) -> Built:
    try:
        return future.result()
    except (TimeoutError, ChildProcessError) as error:
        raise ToolError(f"the kernel could not be built: {error or 'out of time'}") from None


def _raise(error: Exception):
    raise error


def measured(case: Case, built: Built, loader: Loader, limits: Ceilings) -> Row:
    """Check and time one case on the GPU.

    Raises
    ------
    WrongOutputs
        Where ours, or a rival's, are not what they should be.
    """
    import torch

    from tbn_tvm.bench.cuda_layer import Layer
    from tbn_tvm.bench.cuda_rivals import rivals
    from tbn_tvm.bench.cuda_timing import measure as time_in_turns

    with torch.inference_mode():
        layer = Layer(case)
        ours, error = replay_of(layer, built, loader, limits.l2)
        errors, replays, names = {"ours": error}, [ours], []
        for rival in rivals(layer, limits.l2):
            errors[rival.name] = _checked(layer, rival.name, rival.calls[0](), rival.xs[0])
            replays.append(Replay(rival.calls, rival.cold))
            names.append(rival.name)
        times = time_in_turns(replays)
    by_bytes, by_operations = limits.floor(layer.nbytes, layer.operations, case.dtype)
    return Row(
        case,
        built.request.kernel,
        built.request.configs,
        built.request.sources,
        times[0],
        dict(zip(names, times[1:], strict=True)),
        errors,
        by_bytes / times[0].median,
        by_operations / times[0].median,
    )


class WrongOutputs(TbnError):
    """A kernel computed something else: it is not timed."""


def replay_of(layer, built: Built, loader: Loader, l2: int) -> tuple[Replay, float]:
    """A graph of our calls, checked, and the error of one of them."""
    import torch
    import tvm_ffi

    from tbn_tvm.bench.cuda_timing import copies_for, on_torch_stream, rotated

    function = loader.load(built)
    words, x, y = layer.words(built.request), layer.activations(), layer.outputs()
    nbytes = sum(t.numel() * t.element_size() for t in (words, x, y))
    copies = copies_for(nbytes, l2)
    xs = rotated(x, copies, torch.Tensor.normal_)
    ys = rotated(y, copies, lambda block: block.fill_(float("nan")))
    operands = (xs, rotated(words, copies), rotated(layer.alpha, copies), ys)
    calls = [
        functools.partial(function, *map(tvm_ffi.from_dlpack, tensors))
        for tensors in zip(*operands, strict=True)
    ]
    name = built.request.kernel
    with on_torch_stream():
        calls[0]()
    torch.cuda.synchronize()
    error = _checked(layer, name, ys[0], xs[0])
    replay = Replay(calls, nbytes * copies > l2)
    # A graph that had captured nothing, or another stream's work, would be fast.
    for poisoned in ys:
        poisoned.fill_(float("nan"))
    replay.run()
    for which in {0, copies // 2, copies - 1}:
        _checked(layer, f"{name} in a graph", ys[which], xs[which])
    return replay, error


def _checked(layer, name: str, y, x) -> float:
    error = layer.error(y, x)
    if not layer.is_right(error):
        raise WrongOutputs(f"{layer.case.key}: outputs of {name} are off by {error:.1e}: not timed")
    return error
