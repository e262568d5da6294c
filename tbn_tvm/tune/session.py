"""A tuning run: trials shared out among the layers of a model, then the records of what won."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import tvm

from tbn_tvm.schedules.families import Family
from tbn_tvm.schedules.records.identity import address, identity
from tbn_tvm.schedules.rules import Workload, choose
from tbn_tvm.tune import log, worker
from tbn_tvm.tune.cost_model import CostModel
from tbn_tvm.tune.log import Trial
from tbn_tvm.tune.measure import Bench, Outcome
from tbn_tvm.tune.problems import Problem, samples
from tbn_tvm.tune.space import Space, key

_FIRST, _ROUND = 8, 16
"""Configurations that a search begins with, and of a batch."""


@dataclass(eq=False)
class Search:
    """The trials of one kernel for one regime."""

    kernel: str
    regime: Workload
    space: Space
    weight: float
    path: Path
    trials: dict = field(default_factory=dict)
    exhausted: bool = False

    @property
    def ranked(self) -> list[Trial]:
        """Trials that ran, the fastest first."""
        return sorted(
            (trial for trial in self.trials.values() if trial.seconds is not None),
            key=lambda trial: trial.seconds,
        )

    @property
    def best(self) -> float | None:
        """The shortest time."""
        return self.ranked[0].seconds if self.ranked else None


@dataclass(frozen=True)
class Row:
    """The state of a search, for tables; ``error`` is what became of one that failed."""

    layer: str
    kernel: str
    batch: int | None
    space: int
    trials: int
    failed: int
    default_seconds: float | None
    best_seconds: float | None
    config: dict | None
    error: str | None

    def to_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    step: str
    done: int
    total: int
    rows: tuple[Row, ...]


class Session:
    """A tuning run.

    Parameters
    ----------
    problems : list of Problem
        What to tune.
    target : tvm.target.Target
        What for.
    family : Family
        Its kernels and rules.
    bench : Bench
        Where candidates are built and timed.
    folder : Path
        Of records; the log of earlier runs in it is taken up.
    trials : int
        Configurations to measure, those in the log included.
    seed : int
        Of the random part of the search.
    progress : callable, optional
        Called with a :class:`Progress` now and then.
    """

    def __init__(
        self,
        problems: list[Problem],
        target: tvm.target.Target,
        family: Family,
        bench: Bench,
        folder: Path,
        trials: int,
        seed: int = 0,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.problems, self.target, self.family = problems, target, family
        self.bench, self.folder, self.limit, self.seed = bench, folder, trials, seed
        self.identity, self.machine = identity(target), bench.machine
        self.tell = progress or (lambda _progress: None)
        self.searches: dict[tuple[str, Workload], Search] = {}
        for problem in problems:
            for name in problem.kernels:
                self._add(name, problem)
        self.resumed = self.done
        self.model = CostModel(target, family, list(self.searches), seed)
        for search in self.searches.values():
            known = list(search.trials.values())
            self._learn(
                search, [t.config for t in known], [Outcome(t.seconds, t.error) for t in known]
            )

    @property
    def done(self) -> int:
        """Trials so far, those of earlier runs included."""
        return sum(len(search.trials) for search in self.searches.values())

    @property
    def total(self) -> int:
        """Trials that this run ends with."""
        everything = sum(max(len(s.space), len(s.trials)) for s in self.searches.values())
        return max(min(self.limit, everything), self.done)

    def rows(self) -> tuple[Row, ...]:
        """A row a search that was begun."""
        labels = {}
        for problem in self.problems:
            for name in problem.kernels:
                for regime in self.family.kernels[name].regimes(problem.workload):
                    labels.setdefault((name, regime), problem.label)
        rows = []
        for at, search in self.searches.items():
            if not search.trials:
                continue
            ranked = search.ranked
            default = search.trials.get(key(search.space.default))
            rows.append(
                Row(
                    labels[at],
                    search.kernel,
                    search.regime.batch,
                    len(search.space),
                    len(search.trials),
                    len(search.trials) - len(ranked),
                    default.seconds if default else None,
                    ranked[0].seconds if ranked else None,
                    ranked[0].config if ranked else None,
                    next((t.error for t in search.trials.values() if t.error), None),
                )
            )
        return tuple(rows)

    def search(self) -> None:
        """Measure until the trials are spent or nothing is left to measure."""
        self._report("measuring")
        while self.done < self.limit and self._round():
            pass

    # -- inside ------------------------------------------------------------------------------

    def _add(self, name: str, problem: Problem) -> None:
        kernel = self.family.kernels[name]
        regimes = kernel.regimes(problem.workload)
        for regime in regimes:
            weight = problem.weight / len(regimes)
            found = self.searches.get((name, regime))
            if found is not None:
                found.weight += weight
                continue
            path = log.path_of(self.folder, address(regime, self.identity))
            search = Search(name, regime, Space(kernel, regime), weight, path)
            for trial in log.read(path):
                if (trial.kernel, trial.version) == (name, kernel.version) and (
                    trial.machine == self.machine
                ):
                    search.trials[key(trial.config)] = trial
            self.searches[name, regime] = search

    def _round(self) -> bool:
        """Measure a batch of configurations, whoever's turn it is; false where none are left."""
        size = min(max(_ROUND, 2 * self.bench.parallel), self.limit - self.done)
        chosen: list[tuple[Search, dict]] = []
        while len(chosen) < size:
            search = self._next([search for search, _ in chosen])
            if search is None:
                break
            configs = self._proposed(search, size - len(chosen))
            chosen += [(search, config) for config in configs]
            search.exhausted = not configs
        if not chosen:
            return False
        built = self.bench.build(
            [
                self.specification(self.family.kernels[search.kernel], search.regime, [config])
                for search, config in chosen
            ]
        )
        learnt: dict[int, tuple[Search, list, list]] = {}
        for (search, config), outcome in zip(chosen, self.bench.time(built), strict=True):
            self.note(search, config, outcome)
            self._report("measuring")
            _, configs, outcomes = learnt.setdefault(id(search), (search, [], []))
            configs.append(config)
            outcomes.append(outcome)
        for search, configs, outcomes in learnt.values():
            self._learn(search, configs, outcomes)
        return True

    def _next(self, chosen: list[Search]) -> Search | None:
        """The search whose share of the trials is the furthest from spent.

        One that is in the batch already waits for what comes of it.
        """
        fastest: dict[Workload, float] = {}
        for search in self.searches.values():
            if search.best is not None:
                known = fastest.get(search.regime, search.best)
                fastest[search.regime] = min(known, search.best)

        def share(search: Search) -> tuple:
            if not search.trials:
                return (1, search.weight)
            # Kernels that are far behind another one for the same regime get little.
            behind = fastest[search.regime] / search.best if search.best else 0.1
            return (0, search.weight * behind**2 / len(search.trials))

        waiting = [s for s in self.searches.values() if not s.exhausted and s not in chosen]
        return max(waiting, key=share, default=None)

    def _proposed(self, search: Search, room: int) -> list[dict]:
        wanted = _ROUND
        if not search.trials:
            # All that there is to tune gets a share, if only its default.
            wanted = max(1, min(_FIRST, self.limit // len(self.searches)))
        return search.space.propose(
            min(wanted, room),
            set(search.trials),
            [trial.config for trial in search.ranked],
            lambda pool: self.model.scores(search.kernel, search.regime, pool),
            random.Random(f"{self.seed} {search.kernel} {search.path.stem} {len(search.trials)}"),
        )

    def specification(self, kernel, workload: Workload, configs) -> tvm.IRModule:
        """A candidate for the bench."""
        return worker.specification(kernel.name, workload, configs, samples(kernel, workload))

    def note(self, search: Search, config: dict, outcome: Outcome) -> None:
        """Keep an outcome, in the log first."""
        version = self.family.kernels[search.kernel].version
        trial = Trial(search.kernel, version, config, outcome.seconds, outcome.error, self.machine)
        log.append(search.path, [trial])
        search.trials[key(config)] = trial

    def _learn(self, search: Search, configs: list[dict], outcomes: list[Outcome]) -> None:
        if configs:
            self.model.update(search.kernel, search.regime, configs, outcomes)

    def _report(self, step: str) -> None:
        self.tell(Progress(step, self.done, self.total, self.rows()))

    def rule_kernel(self, workload: Workload) -> str:
        """What rules choose for a workload that has a search."""
        return choose(self.family.rules, workload) or next(
            search.kernel for search in self.searches.values() if search.regime == workload
        )
