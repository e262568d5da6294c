"""Tuning: measure configurations of the kernels a model would use, and record the best.

The search is over the parameters of our templates; MetaSchedule's builder, runners and XGBoost
cost model drive it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tbn_tvm.errors import TbnError, UsageError

if TYPE_CHECKING:
    from tbn_tvm.tune.measure import Tracker
    from tbn_tvm.tune.session import Progress, Row
    from tbn_tvm.tune.settle import Settled


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes
    ----------
    target : dict
        The identity that records are kept under.
    machine : str
        Where candidates ran.
    records : Path
        The folder.
    trials, resumed, failed : int
        Configurations measured in all, those of them that earlier runs had measured, and those
        that failed.
    rows : tuple of Row
        Each kernel's search.
    settled : list of Settled
        What was recorded.
    interrupted : bool
        Whether Ctrl-C ended it early.
    """

    target: dict
    machine: str
    records: Path
    trials: int
    resumed: int
    failed: int
    rows: tuple[Row, ...]
    settled: list[Settled]
    interrupted: bool

    def to_dict(self) -> dict:
        """For JSON."""
        return {
            "target": self.target,
            "machine": self.machine,
            "records": str(self.records),
            "trials": self.trials,
            "resumed": self.resumed,
            "failed": self.failed,
            "searches": [row.to_dict() for row in self.rows],
            "recorded": [settled.to_dict() for settled in self.settled],
            "interrupted": self.interrupted,
        }


def tune(
    model,
    target: str | dict,
    *,
    trials: int,
    records: str | os.PathLike,
    timeout: float = 10.0,
    seed: int = 0,
    batches: Sequence[int] = (),
    layers: Sequence[int] = (),
    tracker: Tracker | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Tune the kernels of a model.

    Parameters
    ----------
    model : str, path, ExportedProgram or Imported
        As for :func:`tbn_tvm.compiler.compile`.
    target : str or dict
        Likewise; no board.
    trials : int
        Configurations to measure over all layers, those in the log of ``records`` included.
    records : path
        A folder, made where missing, that gets the records and a log of all trials. A run with
        the same folder goes on where an earlier one stopped, however it stopped.
    timeout : float
        Seconds that a candidate may take to run.
    seed : int
        Of the random part of the search.
    batches : sequence of int
        Sizes to fix a symbolic batch to; by default it is tuned as it is.
    layers : sequence of int
        Positions of the only layers to tune, in the order of the graph.
    tracker : Tracker, optional
        An RPC tracker whose servers run the candidates. They have to be alike.
    progress : callable, optional
        Called as the run goes on. Ctrl-C is answered by recording what was found so far.

    Raises
    ------
    TbnError
        Where nothing can be tuned or measured; never for a candidate's failure.
    """
    from tbn_tvm import compiler
    from tbn_tvm.schedules.families import family_of
    from tbn_tvm.tune.measure import Bench
    from tbn_tvm.tune.problems import problems_of
    from tbn_tvm.tune.session import Session
    from tbn_tvm.tune.settle import ROUNDS, settle

    if trials < 1:
        raise UsageError(f"--trials {trials}: expected at least 1")
    resolved = compiler.resolve_target(target)
    if not isinstance(resolved, dict):
        raise UsageError(f"{target} is a board: tune it with tbn_tvm.tune.boards.tune_board")
    folder = Path(records)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--records {folder}: is a file, expected a folder")
    place = _tvm_target(resolved)
    family = family_of(place)
    if family.name == "cuda" and tracker is None:
        from tbn_tvm import cuda

        cuda.require_device("tuning")
    if not isinstance(model, compiler.Imported):
        model = compiler.import_model(model)
    problems = problems_of(model.mod, place, family, list(batches) or [None], layers)
    if not problems:
        which = f"of layers {', '.join(map(str, layers))} " if layers else ""
        raise TbnError(
            f"nothing {which}to tune: no kernel for {target} covers a tiled layer of this model "
            "(--target host uses this CPU's features)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with Bench(place, family, timeout, tracker) as bench:
        session = Session(problems, place, family, bench, folder, trials, seed, progress)
        interrupted = False
        try:
            session.search()
        except KeyboardInterrupt:
            interrupted = True
        rows = session.rows()
        if not interrupted and rows and all(row.failed == row.trials for row in rows):
            raise TbnError(
                f"all {session.done} candidates failed, the first with: {rows[0].error}; remove "
                f"{folder / 'log'} to try them again"
            )
        settled = settle(session, 3 if interrupted else ROUNDS)
        rows = session.rows()
        return Report(
            session.identity,
            session.machine,
            folder,
            session.done,
            session.resumed,
            sum(row.failed for row in rows),
            rows,
            settled,
            interrupted,
        )


def _tvm_target(target: dict):
    import tvm

    if target["kind"] == "cuda" and "host" not in target:
        return tvm.target.Target(target, host={"kind": "llvm"})
    return tvm.target.Target(target)
