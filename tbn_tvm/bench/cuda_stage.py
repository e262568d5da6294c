"""One stage of the GPU benchmark as a process of its own: ``python -m tbn_tvm.bench.cuda_stage``.

``benchmarks/gpu`` starts stages, watches that each goes on printing, and starts one again that hung
or died: a journal tells it where to go on.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

# PyTorch before TVM: TVM's CUDA run time is loaded when TVM is imported, and not at all unless
# libcudart is loaded by then or on the loader's path.
import torch

from tbn_tvm.bench import cuda, cuda_cases, cuda_check, cuda_search, cuda_vit
from tbn_tvm.bench.cuda_build import Builder, Built, Loader, request_of, target_of
from tbn_tvm.bench.cuda_journal import Journal
from tbn_tvm.errors import TbnError, UsageError

AGAIN = 75
"""Exit status that asks for another process: this one's GPU context is lost."""

ARCH_WITHOUT_DEVICE = "sm_90a"
_WAIT = 5.0


class Stage:
    """What all stages share.

    Parameters
    ----------
    name : str
        Of the stage.
    args : argparse.Namespace
        Of :func:`main`.
    """

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name, self.out, self.small = name, Path(args.out), args.small
        self.out.mkdir(parents=True, exist_ok=True)
        self.kernels = Path(args.kernels)
        self.dry, self.workers = args.dry_run, args.workers
        self.ends = time.monotonic() + args.seconds
        self.journal = Journal(self.out / f"{name}.jsonl")
        self.records_folder = self.out / "records"

    @functools.cached_property
    def arch(self) -> str:
        """Of the device; of Hopper where there is none and none is needed."""
        if self.dry or not torch.cuda.is_available():
            return ARCH_WITHOUT_DEVICE
        return cuda.require_device()

    def left(self) -> bool:
        """Whether there is time to start something."""
        return time.monotonic() < self.ends

    def records(self):
        """What the search wrote, before the shipped ones."""
        from tbn_tvm.schedules.records import Records

        folder = self.records_folder if self.records_folder.is_dir() else None
        return Records.load(target_of(self.arch), folder)

    def builder(self) -> Builder:
        """For this stage's kernels; a dry run asks what resources they take."""
        return Builder(self.kernels, self.workers, inspect=self.dry)

    def built(self, future: concurrent.futures.Future) -> Built:
        """Wait for a kernel, and say so: silence is taken for a kernel that hangs."""
        while True:
            try:
                return future.result(timeout=_WAIT)
            except concurrent.futures.TimeoutError:
                if future.done():  # meanwhile, or building itself ran out of time
                    return future.result()
                say(f"{self.name}: building")

    def attempt(self, key: str, kernel: str | None, work: Callable[[], dict]) -> None:
        """Do an item, unless it was done, its kernel is given up or time is over.

        Parameters
        ----------
        key : str
            The item's.
        kernel : str or None
            Which would be to blame.
        work : callable
            Returns what goes into the journal.
        """
        if self.journal.settled(key) or not self.left():
            return
        if kernel is not None and self.journal.refused(kernel):
            self.journal.failed(key, f"not tried: {kernel} was lost too often")
            return
        self.journal.running(key, kernel)
        try:
            data = work()
        except Exception as error:
            self.journal.failed(key, told(error), kernel)
            say(f"{self.name}: FAILED {key}: {told(error)}")
            self.require_context()
            return
        self.journal.done(key, data)
        say(f"{self.name}: {key}: {data.get('told', 'done')}")

    def require_context(self) -> None:
        """End the process where a failure has taken the GPU's context with it."""
        if self.dry or not torch.cuda.is_available():
            return
        try:
            torch.cuda.synchronize()
            assert torch.ones(8, device="cuda").sum().item() == 8
        except Exception as error:
            say(f"{self.name}: the GPU's context is lost ({told(error)}); another process goes on")
            sys.stdout.flush()
            os._exit(AGAIN)


def told(error: BaseException) -> str:
    """The line of an error that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:400]


def say(message: str) -> None:
    """A line for whoever watches."""
    print(message, flush=True)


# -- stages --------------------------------------------------------------------------------------


def info(stage: Stage) -> None:
    """What there is: GPU, driver, versions. Fails where nothing could be measured."""
    from tbn_tvm.compiler import versions

    if not stage.dry:
        cuda.require_device()
    found = {
        "gpu": None,
        "arch": stage.arch,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        **versions(),
    }
    if torch.cuda.is_available() and not stage.dry:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "processors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "l2": getattr(properties, "L2_cache_size", None),
            "cudnn": torch.backends.cudnn.version(),
        }
    stage.attempt("info", None, lambda: {**found, "told": found["gpu"] or "no GPU is used"})


def check(stage: Stage) -> None:
    """Numerics of every kernel with many configurations."""
    every = 0 if stage.small else (1 if stage.dry else 4)
    items = [c for c in cuda_check.checks(stage.arch, every) if not stage.journal.settled(c.key)]
    with stage.builder() as builder, Loader(stage.kernels) as loader:
        futures = [builder.submit(item.request) for item in items]
        for item, future in zip(items, futures, strict=True):

            def work(item=item, future=future) -> dict:
                built = stage.built(future)
                if stage.dry:
                    item.emulated()
                    return {"kernel": item.request.kernel, "resources": built.resources}
                item.run(cuda_check.on_device(loader.load(built)))
                return {"kernel": item.request.kernel}

            stage.attempt(item.key, item.request.kernel, work)


def build(stage: Stage) -> None:
    """Compile ahead what the next stages measure: takes no GPU."""
    cuda_vit_ahead = not (stage.small or cuda_vit.is_prepared(stage.out))
    with stage.builder() as builder:
        futures = [
            (case, builder.submit(request))
            for case, request in _requests(stage, _cases(stage), None)
        ]
        if cuda_vit_ahead:
            stage.attempt("vit", None, lambda: {"planned": cuda_vit.prepare(stage.out, stage.arch)})
        for case, future in futures:

            def work(future=future) -> dict:
                built = stage.built(future)
                worst = max((r["spill_stores"] for r in built.resources.values()), default=0)
                return {
                    "kernel": built.request.kernel,
                    "seconds": built.seconds,
                    "resources": built.resources,
                    "told": f"{built.request.kernel}, {built.seconds:.1f} s"
                    + (f", SPILLS {worst} bytes" if worst else ""),
                }

            stage.attempt(case.key, None, work)


def bench(stage: Stage) -> None:
    """Ours against cuBLAS and cuDNN."""
    records = stage.records()
    _measure(stage, _cases(stage), records)


def headlines(stage: Stage) -> None:
    """The cases with targets, as rules alone configure them."""
    _measure(stage, cuda_cases.small()[:1] if stage.small else cuda_cases.HEADLINES, None)


def _measure(stage: Stage, cases, records) -> None:
    if stage.dry:  # what would be timed is built, and that is all
        return
    from tbn_tvm.bench.cuda_timing import ceilings

    limits = ceilings()
    (stage.out / "ceilings.json").write_text(json.dumps(limits.to_dict()))
    say(
        f"{stage.name}: copies {limits.bandwidth / 1e12:.2f} TB/s, float16 products "
        f"{limits.rates['float16'] / 1e12:.0f} TFLOP/s"
    )
    with stage.builder() as builder, Loader(stage.kernels) as loader:
        futures = [
            (case, request, builder.submit(request))
            for case, request in _requests(stage, cases, records)
        ]
        for case, request, future in futures:

            def work(case=case, future=future) -> dict:
                row = cuda.measured(case, stage.built(future), loader, limits)
                return {
                    **row.to_dict(),
                    "told": f"{row.ours.median * 1e6:.2f} us by {row.kernel}, {row.ratio:.2f}x "
                    f"{row.rival}, {row.limit_share:.0%} of the limit",
                }

            stage.attempt(case.key, request.kernel, work)


def _requests(stage: Stage, cases, records) -> list:
    """What is left to build; cases that no kernel covers here have failed."""
    found = []
    for case in cases:
        if stage.journal.settled(case.key):
            continue
        try:
            found.append((case, request_of(case, stage.arch, records)))
        except UsageError as error:
            stage.journal.failed(case.key, str(error))
    return found


def _cases(stage: Stage) -> list:
    return cuda_cases.small() if stage.small else cuda_cases.everything()


def tune(stage: Stage) -> None:
    """Search configurations for the headline cases and write records."""
    cases = cuda_cases.small()[:2] if stage.small else cuda_search.searched()
    begun = time.monotonic()
    total = stage.ends - begun
    with stage.builder() as builder, Loader(stage.kernels) as loader:
        for index, case in enumerate(cases):
            # What a case leaves over, those after it share.
            share = (stage.ends - time.monotonic()) / (len(cases) - index)
            ends = min(stage.ends, time.monotonic() + max(share, total / len(cases) / 2))
            _tune_case(stage, case, builder, loader, lambda ends=ends: time.monotonic() < ends)


def _tune_case(stage: Stage, case, builder: Builder, loader: Loader, left) -> None:
    from tbn_tvm.bench.cuda_layer import Layer
    from tbn_tvm.bench.cuda_timing import measure

    if stage.journal.settled(f"record of {case.key}") or not left():
        return
    layer = None if stage.dry else Layer(case)
    l2 = 0 if stage.dry else int(torch.cuda.get_device_properties(0).L2_cache_size)

    def seconds_of(candidates) -> dict[str, float]:
        futures = [builder.submit(candidate.request) for candidate in candidates]
        for candidate, future in zip(candidates, futures, strict=True):

            def work(candidate=candidate, future=future) -> dict:
                built = stage.built(future)
                if stage.dry:
                    return {"kernel": candidate.request.kernel, "resources": built.resources}
                replay, _error = cuda.replay_of(layer, built, loader, l2)
                (found,) = measure([replay], turns=5, turn_seconds=1e-3)
                return {
                    "kernel": candidate.request.kernel,
                    "config": candidate.request.configs[0],
                    "seconds": found.median,
                    "told": f"{found.median * 1e6:.2f} us",
                }

            if left():
                with torch.inference_mode():
                    stage.attempt(candidate.key, candidate.request.kernel, work)
            else:
                future.cancel()
        done = {
            candidate.key: stage.journal.entries.get(candidate.key, {}).get("data", {})
            for candidate in candidates
        }
        return {key: data["seconds"] for key, data in done.items() if "seconds" in data}

    count = 2 if stage.dry else cuda_search.FIRST
    ranked, _ = cuda_search.search(case, stage.arch, seconds_of, left, count)
    if not ranked:
        return
    default = cuda_search.first_round(case, stage.arch, 0)[0]
    winners = {}
    for candidate in ranked:
        winners.setdefault(candidate.request.kernel, candidate)
    finalists = {c.key: c for c in (default, *winners.values())}

    def settle() -> dict:
        with torch.inference_mode():
            replays = [
                cuda.replay_of(layer, stage.built(builder.submit(c.request)), loader, l2)[0]
                for c in finalists.values()
            ]
            times = measure(replays)
        seconds = {key: time.median for key, time in zip(finalists, times, strict=True)}
        trials = {kernel: sum(c.request.kernel == kernel for c in ranked) for kernel in winners}
        path = cuda_search.record(
            default,
            list(winners.values()),
            seconds,
            trials,
            torch.cuda.get_device_name(0),
            stage.records_folder,
        )
        best = min(seconds, key=seconds.__getitem__)
        return {
            "case": case.to_dict(),
            "record": path.name,
            "best": best,
            "seconds": seconds,
            "told": f"{seconds[default.key] * 1e6:.2f} us by default, best "
            f"{seconds[best] * 1e6:.2f} us: {best}",
        }

    # Time for this was kept: a search without its record is lost.
    stage.ends += 20
    stage.attempt(f"record of {case.key}", None, settle)
    stage.ends -= 20


def vit(stage: Stage) -> None:
    """Memory of the Vision Transformer."""
    if not cuda_vit.is_prepared(stage.out):
        if stage.small:
            return
        stage.attempt("vit", None, lambda: {"planned": cuda_vit.prepare(stage.out, stage.arch)})
    if stage.dry:
        return
    # Each in a process of its own: what one leaves on the GPU would count for the next.
    left = [name for name in ("launches", "graph", "dense") if not stage.journal.settled(name)]
    if left:
        stage.attempt(left[0], None, functools.partial(_vit_one, stage, left[0]))
    if left[1:] and stage.left():
        os._exit(AGAIN)


def _vit_one(stage: Stage, name: str) -> dict:
    found = cuda_vit.measure_dense() if name == "dense" else cuda_vit.measure(stage.out, name)
    return {**found, "told": f"{found['peak_bytes'] / 1e6:.1f} MB, {found['us']:.0f} us"}


STAGES = {stage.__name__: stage for stage in (info, check, build, headlines, tune, bench, vit)}


def main(argv: list[str] | None = None) -> int:
    """Run a stage."""
    parser = argparse.ArgumentParser(prog="python -m tbn_tvm.bench.cuda_stage")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", required=True, help="folder for journals and results")
    parser.add_argument("--kernels", required=True, help="folder of built kernels")
    parser.add_argument("--seconds", type=float, default=600.0, help="to start items in")
    parser.add_argument("--workers", type=int, help="processes that build; one a core by default")
    parser.add_argument("--small", action="store_true", help="a few small cases only")
    parser.add_argument("--dry-run", action="store_true", help="no GPU: build and emulate")
    args = parser.parse_args(argv)
    stage = Stage(args.stage, args)
    try:
        STAGES[args.stage](stage)
    except KeyboardInterrupt:
        return 130
    except TbnError as error:
        say(f"{args.stage}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    # Threads that still build would keep the process from ending.
    sys.stdout.flush()
    os._exit(status)
