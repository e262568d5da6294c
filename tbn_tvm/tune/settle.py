"""The end of a tuning run: the best meet the default once more, in turns, and the winner's numbers
are checked before it is recorded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tbn_tvm import __version__
from tbn_tvm._tvm import installed
from tbn_tvm.schedules.records import fits, store
from tbn_tvm.schedules.records.store import Entry, Record
from tbn_tvm.schedules.rules import Workload
from tbn_tvm.tune.measure import Built, Outcome
from tbn_tvm.tune.problems import Problem
from tbn_tvm.tune.session import Search, Session
from tbn_tvm.tune.space import key

ROUNDS = 5
_FINALISTS = 3
_CLOSE = 1.5
"""Kernels whose best is slower than the fastest by more than this are not measured again."""

MARGIN = 0.98
"""What is not faster than the default by 2 percent in turns is noise: the default stays."""


@dataclass(frozen=True)
class Settled:
    """What was recorded for a workload.

    Attributes
    ----------
    workload : Workload
        A regime, or a workload whose kernels were compared.
    kernel : str
        The best kernel.
    config : dict or None
        Its configuration; None where only kernels were compared.
    seconds, default_seconds : float
        Of one call, and of what rules alone choose, in turns.
    default_kernel : str
        Which kernel that is.
    path : Path
        The record.
    """

    workload: Workload
    kernel: str
    config: dict | None
    seconds: float
    default_seconds: float
    default_kernel: str
    path: Path

    @property
    def improved(self) -> bool:
        """Whether tuning found anything better than the default."""
        return self.seconds < self.default_seconds

    def to_dict(self) -> dict:
        """For JSON."""
        return {
            "workload": self.workload.to_dict(),
            "kernel": self.kernel,
            "config": self.config,
            "seconds": self.seconds,
            "default_seconds": self.default_seconds,
            "default_kernel": self.default_kernel,
            "improved": self.improved,
            "record": str(self.path),
        }


@dataclass(frozen=True)
class _Finalist:
    kernel: str
    config: dict
    built: Built
    outcome: Outcome


def settle(session: Session, rounds: int = ROUNDS) -> list[Settled]:
    """Record the best of every regime, and of every workload that several kernels compete for.

    Parameters
    ----------
    session : Session
        After its search, whole or interrupted.
    rounds : int
        Turns that finalists take.
    """
    regimes: dict[Workload, list[Search]] = {}
    for search in session.searches.values():
        if search.ranked:
            regimes.setdefault(search.regime, []).append(search)
    results = []
    for regime, searches in regimes.items():
        session._report("settling")
        settled = _settle_regime(session, regime, searches, rounds)
        if settled is not None:
            results.append(settled)
    for problem in session.problems:
        if problem.workload not in regimes:
            settled = _settle_kernels(session, problem, rounds)
            if settled is not None:
                results.append(settled)
    return results


def _settle_regime(
    session: Session, regime: Workload, searches: list[Search], rounds: int
) -> Settled | None:
    rule = session.rule_kernel(regime)
    default = session.family.kernels[rule].default(regime)
    old = store.read(session.folder, regime, session.identity)
    fastest = min(search.best for search in searches)
    chosen: dict[tuple, tuple[str, dict]] = {(rule, key(default)): (rule, default)}
    contended = set()
    for search in searches:
        if search.best > _CLOSE * fastest:
            continue
        configs = [trial.config for trial in search.ranked[:_FINALISTS]]
        kernel = session.family.kernels[search.kernel]
        entry = old.kernels.get(search.kernel) if old else None
        if entry and entry.version == kernel.version and fits(kernel, regime, entry.config or {}):
            configs.append(entry.config)
            contended.add(search.kernel)
        for config in configs:
            chosen.setdefault((search.kernel, key(config)), (search.kernel, config))
    finalists = _measured(session, regime, [(k, [c]) for k, c in chosen.values()], rounds)
    baseline = finalists[0]
    if baseline.outcome.error:
        store.notice(
            f"{rule}, which rules choose for {_told(regime)}, fails ({baseline.outcome.error}); "
            "nothing to compare with, so nothing is recorded"
        )
        return None
    entries: dict[str, Entry] = {}
    threshold = MARGIN * baseline.outcome.seconds
    about = {"kernel": rule, "config": default, "seconds": baseline.outcome.seconds}
    for search in searches:
        best = baseline if search.kernel == rule else None
        ranked = sorted(
            (f for f in finalists if f.kernel == search.kernel and not f.outcome.error),
            key=lambda finalist: finalist.outcome.seconds,
        )
        for finalist in ranked:
            if finalist is baseline or finalist.outcome.seconds >= threshold:
                break
            wrong = session.bench.difference(finalist.built, baseline.built)
            if wrong is None:
                best = finalist
                break
            _discard(session, search, finalist.config, wrong)
        if best is not None:
            entries[search.kernel] = _entry(session, best, about, len(search.trials))
    return _recorded(session, regime, entries, frozenset(contended))


def _settle_kernels(session: Session, problem: Problem, rounds: int) -> Settled | None:
    """Compare kernels for a workload whose configurations are those of its regimes."""
    if len(problem.kernels) < 2:
        return None
    rule, contenders = problem.kernels[0], []
    for name in problem.kernels:
        kernel = session.family.kernels[name]
        configs = []
        for regime in kernel.regimes(problem.workload):
            record = store.read(session.folder, regime, session.identity)
            entry = record.kernels.get(name) if record else None
            usable = entry and entry.config is not None and entry.version == kernel.version
            configs.append(entry.config if usable else kernel.default(regime))
        contenders.append((name, configs))
    finalists = _measured(session, problem.workload, contenders, rounds)
    baseline, *others = finalists
    if baseline.outcome.error:
        return None
    about = {"kernel": rule, "config": None, "seconds": baseline.outcome.seconds}
    entries = {rule: _entry(session, baseline, about, 0, None)}
    for finalist in others:
        slower = finalist.outcome.error or (
            finalist.outcome.seconds >= MARGIN * baseline.outcome.seconds
        )
        if not slower and session.bench.difference(finalist.built, baseline.built) is None:
            entries[finalist.kernel] = _entry(session, finalist, about, 0, None)
    return _recorded(session, problem.workload, entries, frozenset(problem.kernels))


def _measured(session: Session, workload: Workload, contenders, rounds: int) -> list[_Finalist]:
    kernels = session.family.kernels
    built = session.bench.build(
        [session.specification(kernels[name], workload, configs) for name, configs in contenders]
    )
    outcomes = session.bench.in_turns(built, rounds)
    return [
        _Finalist(name, configs[0], made, outcome)
        for (name, configs), made, outcome in zip(contenders, built, outcomes, strict=True)
    ]


def _entry(session: Session, finalist: _Finalist, default: dict, trials: int, *config) -> Entry:
    return Entry(
        session.family.kernels[finalist.kernel].version,
        config[0] if config else finalist.config,
        finalist.outcome.seconds,
        default,
        trials,
        session.machine,
        {"tvm": installed("apache-tvm"), "tbn_tvm": __version__},
    )


def _recorded(session: Session, workload: Workload, entries, contended) -> Settled | None:
    if not entries:
        return None
    path = store.write(session.folder, Record(workload, session.identity, entries), contended)
    best = min(entries, key=lambda name: entries[name].seconds)
    entry = entries[best]
    return Settled(
        workload,
        best,
        entry.config,
        entry.seconds,
        entry.default["seconds"],
        entry.default["kernel"],
        path,
    )


def _discard(session: Session, search: Search, config: dict, wrong: str) -> None:
    store.notice(f"{search.kernel} with {config} is fast but wrong ({wrong}); discarded")
    session.note(search, config, Outcome(error=f"wrong: {wrong}"))


def _told(workload: Workload) -> str:
    geometry = workload.product.geometry
    return f"{geometry.m}x{geometry.n} at batch {workload.batch or 'any'}"
