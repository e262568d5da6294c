"""Tuning for boards: every kernel that fits a layer is emulated, and the fewest instructions win.

Emulated instructions are the same on every run and machine, so nothing is measured twice and there
is no noise to allow for. All layers try their next kernel in the same firmware: a model takes as
many firmwares as the layer with most choices has kernels.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tbn_tvm import __version__
from tbn_tvm._tvm import installed
from tbn_tvm.errors import FitError, TbnError, UsageError
from tbn_tvm.micro import Session
from tbn_tvm.micro.profile import profile, random_inputs
from tbn_tvm.micro.project import Project, create_project
from tbn_tvm.schedules.families import Family, bare_metal, family_of
from tbn_tvm.schedules.records import store
from tbn_tvm.schedules.records.identity import address, identity
from tbn_tvm.schedules.records.store import Entry, Record
from tbn_tvm.schedules.rules import Workload

if TYPE_CHECKING:
    from tbn_tvm.compiler import Imported
    from tbn_tvm.micro.quantization import Calibration
    from tbn_tvm.targets import Board

RUNS = 4
"""Whose mean a count is: a single one is known to a tick of the board's timer only."""

_TOLERANCE = 1e-4
"""Largest difference of two right results, over the largest output: kernels add up in other
orders. Integers do not differ."""


@dataclass
class Measured:
    """A workload and what its kernels took.

    Attributes
    ----------
    workload : Workload
        As lowering asks about it.
    layers : list of int
        Positions of the tiled layers that have it.
    kernels : tuple of str
        Those whose rules fit, first the one that rules choose.
    instructions : dict of str to float
        Of one call, by kernel; those that failed are missing.
    path : Path or None
        The record.
    """

    workload: Workload
    layers: list[int]
    kernels: tuple[str, ...]
    instructions: dict[str, float] = field(default_factory=dict)
    path: Path | None = None

    @property
    def best(self) -> str:
        """The kernel of fewest instructions; of equals, the one that rules prefer."""
        return min(self.instructions, key=self.instructions.__getitem__)

    @property
    def default(self) -> str:
        """The kernel that rules choose."""
        return self.kernels[0]

    def to_dict(self) -> dict:
        """For JSON."""
        return {
            "workload": self.workload.to_dict(),
            "layers": self.layers,
            "instructions": self.instructions,
            "kernel": self.best,
            "default_kernel": self.default,
            "improved": self.best != self.default,
            "record": str(self.path),
        }


@dataclass(frozen=True)
class BoardReport:
    """What :func:`tune_board` did: ``firmwares`` is how many were built and emulated."""

    board: str
    target: dict
    records: Path
    firmwares: int
    measured: list[Measured]

    def to_dict(self) -> dict:
        """For JSON."""
        return {
            "board": self.board,
            "target": self.target,
            "records": str(self.records),
            "firmwares": self.firmwares,
            "recorded": [row.to_dict() for row in self.measured],
        }


class _Ranked:
    """Records that answer every question with the kernel of a rank, and note the questions."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.asked: list[tuple[Workload, tuple[str, ...], str | None]] = []

    def kernel(self, family: Family, workload: Workload) -> str | None:
        fitting = tuple(dict.fromkeys(r.kernel for r in family.rules if r.fits(workload)))
        chosen = fitting[min(self.rank, len(fitting) - 1)] if fitting else None
        self.asked.append((workload, fitting, chosen))
        return chosen

    def config(self, _kernel, _regime) -> None:
        return None


def tune_board(
    model: Imported,
    board: Board,
    *,
    records: str | os.PathLike,
    calibration: Calibration | None = None,
    layers: Sequence[int] = (),
    progress: Callable[[str], None] | None = None,
) -> BoardReport:
    """Emulate every kernel of a model's tiled layers and record the best.

    Parameters
    ----------
    model : Imported
        The model.
    board : Board
        What for.
    records : path
        A folder, made where missing; what it has of the same layers is replaced.
    calibration : Calibration, optional
        For int8 activations.
    layers : sequence of int
        Positions of the only layers to record, in the order of the graph.
    progress : callable, optional
        Called with a word on each step.

    Raises
    ------
    UsageError
        Where ``records`` is a file.
    TbnError
        Where no kernel covers a layer, or the firmware with the rules' choices does not run.
    """
    folder = Path(records)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--records {folder}: is a file, expected a folder")
    tell = progress or (lambda _text: None)
    target = bare_metal(board.features, board.ram_bytes - board.stack_bytes, board.core)
    found, family = identity(target), family_of(target)
    rows: dict[str, Measured] = {}
    expected, rank, ranks = None, 0, 1
    while rank < ranks:
        tell(f"emulating choice {rank + 1}" + (f" of {ranks}" if rank else ""))
        asked = _Ranked(rank)
        try:
            counts, outputs = _run(model, board, calibration, asked)
        except FitError as error:
            if rank == 0:
                raise
            store.notice(f"choice {rank + 1} of kernels does not fit: {str(error).splitlines()[0]}")
            rank += 1
            continue
        expected = outputs if expected is None else expected
        if not _same(outputs, expected):
            chosen = ", ".join(sorted({name for _, _, name in asked.asked if name}))
            store.notice(f"a kernel of {chosen} gives other outputs than the rules'; not recorded")
            rank += 1
            continue
        for position, ((workload, fitting, chosen), count) in enumerate(
            zip(asked.asked, counts, strict=True)
        ):
            if chosen is None or (layers and position not in layers):
                continue
            row = rows.setdefault(address(workload, found), Measured(workload, [], fitting))
            if rank == 0:
                row.layers.append(position)
            row.instructions[chosen] = count
            ranks = max(ranks, len(fitting))
        if not rows:
            raise TbnError("no kernel covers a tiled layer of this model: nothing to tune")
        rank += 1
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows.values():
        row.path = _recorded(folder, row, found, family, board)
    return BoardReport(board.name, found, folder, ranks, list(rows.values()))


def _run(model, board, calibration, asked: _Ranked) -> tuple[list[float | None], list[np.ndarray]]:
    """Instructions of each product, in the order of questions, and the model's outputs."""
    project = create_project(model, board, calibration=calibration, records=asked)
    inputs = random_inputs(project.signature)
    with tempfile.TemporaryDirectory(prefix="tbn_tvm_") as temporary:
        path = project.save(Path(temporary) / "project")
        measured = profile(path, inputs, runs=RUNS)
        with Session(path, firmware="profile") as session:
            outputs = session.run(inputs)
    counts = iter(_products(project, measured.steps))
    told = [None if chosen is None else next(counts) for _, _, chosen in asked.asked]
    return told, list(outputs) if isinstance(outputs, tuple) else [outputs]


def _products(project: Project, steps) -> list[float]:
    """Instructions of the steps that are chosen kernels, in order."""
    names = {f"{project.name}_{row['function']}" for row in project.kernels}
    return [step.instructions for step in steps if step.kernel in names]


def _same(outputs: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    return all(
        np.abs(y - z).max(initial=0) <= _TOLERANCE * np.abs(z).max(initial=0)  # not so for NaN
        for y, z in zip(outputs, expected, strict=True)
    )


def _recorded(folder: Path, row: Measured, found: dict, family: Family, board: Board) -> Path:
    default = {
        "kernel": row.default,
        "config": {},
        "instructions": row.instructions[row.default],
    }
    entries = {
        name: Entry(
            version=family.kernels[name].version,
            config={},
            seconds=None,
            default=default,
            trials=1,
            machine=f"{board.name}, emulated",
            versions={"tvm": installed("apache-tvm"), "tbn_tvm": __version__},
            instructions=instructions,
        )
        for name, instructions in row.instructions.items()
    }
    return store.write(folder, Record(row.workload, found, entries), frozenset(entries))
