"""A quick search for a case's best configuration, all in one process, for ``tbn-tvm``'s records.

``tbn-tvm tune`` tunes whole models with a cost model and times single launches. Here a kernel of a
few microseconds is timed in graphs over rotated operands, as the benchmark does, and what wins is
written as a record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tbn_tvm.bench.cuda_build import Request, request_of, target_of
from tbn_tvm.bench.cuda_cases import HEADLINES, Case
from tbn_tvm.errors import UsageError

FIRST = 40
"""Configurations of a kernel that are tried before any is chosen to go on from."""

MARGIN = 0.98
"""What is not faster than the default by 2 percent is noise."""

CONTENDERS = ("dense_wgmma", "dense_mma", "conv_mma")


def searched() -> list[Case]:
    """The cases worth a search: the headlines, and their layer at batches between."""
    between = [Case(4096, 4096, 4, batch) for batch in (64, 512)]
    return [replace(case, target=None) for case in (*HEADLINES, *between)]


@dataclass(frozen=True)
class Candidate:
    """A configuration of a kernel for a case."""

    case: Case
    request: Request

    @property
    def key(self) -> str:
        """Names the candidate."""
        (config,) = self.request.configs
        told = " ".join(f"{name}={value}" for name, value in sorted(config.items()))
        return f"{self.case.key} by {self.request.kernel} [{told}]"


def first_round(case: Case, arch: str, count: int = FIRST) -> list[Candidate]:
    """The default of each kernel that covers a case, then a sample of its configurations."""
    from tbn_tvm.schedules.cuda import KERNELS
    from tbn_tvm.testing.products import covering

    found = [Candidate(case, request_of(case, arch))]
    for name in CONTENDERS:
        try:
            request = request_of(replace(case, kernel=name), arch)
        except UsageError:
            continue
        kernel = KERNELS[name]
        everything = list(kernel.configs(request.workload))
        sample = everything if len(everything) <= count else covering(everything, count)
        found.append(Candidate(case, request))
        found += [Candidate(case, request.with_config(config)) for config in sample[:count]]
    return list({candidate.key: candidate for candidate in found}.values())


def neighbours(candidate: Candidate) -> Iterator[Candidate]:
    """Configurations that differ in one parameter."""
    from tbn_tvm.schedules.cuda import KERNELS

    request = candidate.request
    kernel, (config,) = KERNELS[request.kernel], request.configs
    for name, values in kernel.space(request.workload).items():
        for value in values:
            other = {**config, name: value}
            if value != config[name] and kernel.valid(request.workload, other):
                yield Candidate(candidate.case, request.with_config(other))


def search(
    case: Case,
    arch: str,
    seconds_of: Callable[[list[Candidate]], dict[str, float]],
    left: Callable[[], bool],
    count: int = FIRST,
) -> tuple[list[Candidate], dict[str, float]]:
    """Measure a sample, then neighbours of the best until none is better or time is up.

    Parameters
    ----------
    case : Case
        What is tuned.
    arch : str
        Of the device.
    seconds_of : callable
        Measures candidates: seconds by key; those that failed are missing.
    left : callable
        Whether there is time left.
    count : int
        Size of each kernel's sample.

    Returns
    -------
    list of Candidate
        Those measured, the fastest first.
    dict of str to float
        Their seconds.
    """
    tried: dict[str, Candidate] = {}
    seconds: dict[str, float] = {}
    batch = first_round(case, arch, count)
    while batch and left():
        tried |= {candidate.key: candidate for candidate in batch}
        seconds |= seconds_of(batch)
        ranked = sorted(seconds, key=seconds.__getitem__)
        around = (near for key in ranked[:2] for near in neighbours(tried[key]))
        batch = list({near.key: near for near in around if near.key not in tried}.values())
    return [tried[key] for key in sorted(seconds, key=seconds.__getitem__)], seconds


def record(
    default: Candidate,
    winners: list[Candidate],
    seconds: dict[str, float],
    trials: dict[str, int],
    machine: str,
    folder: Path,
) -> Path:
    """Write a record of the best of each kernel.

    Parameters
    ----------
    default : Candidate
        What rules choose.
    winners : list of Candidate
        The best of each kernel.
    seconds : dict of str to float
        Of the default and the winners, measured in turns.
    trials : dict of str to int
        Configurations tried of each kernel.
    machine : str
        The device.
    folder : Path
        Of records.
    """
    from tbn_tvm import __version__
    from tbn_tvm._tvm import installed
    from tbn_tvm.schedules.cuda import KERNELS
    from tbn_tvm.schedules.records import store
    from tbn_tvm.schedules.records.identity import identity

    base = seconds[default.key]
    about = {
        "kernel": default.request.kernel,
        "config": default.request.configs[0],
        "seconds": base,
    }
    entries = {}
    for winner in winners:
        kernel = winner.request.kernel
        if seconds[winner.key] >= MARGIN * base:
            if kernel != default.request.kernel:
                continue
            winner = default
        entries[kernel] = store.Entry(
            KERNELS[kernel].version,
            winner.request.configs[0],
            seconds[winner.key],
            about,
            trials.get(kernel, 0),
            machine,
            {"tvm": installed("apache-tvm"), "tbn_tvm": __version__},
        )
    workload = default.request.workload
    found = store.Record(workload, identity(target_of(default.request.arch)), entries)
    return store.write(Path(folder), found, frozenset(entries))
