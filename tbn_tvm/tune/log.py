"""The log of measured trials, from which a run that was killed goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tbn_tvm.schedules.records import store


@dataclass(frozen=True)
class Trial:
    """One measured configuration; ``seconds`` is None where it failed, for the reason ``error``.

    Attributes
    ----------
    kernel, version : str, int
        Whose configuration.
    config : dict of str to int
        The configuration.
    seconds, error
        The outcome.
    machine : str
        Where it was measured.
    """

    kernel: str
    version: int
    config: dict[str, int]
    seconds: float | None
    error: str | None
    machine: str


def path_of(folder: Path, address: str) -> Path:
    """The log of a workload and target."""
    return folder / "log" / f"{address}.jsonl"


def read(path: Path) -> list[Trial]:
    """The trials of a log. Lines that are no trial, as a kill leaves them, are passed over."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    trials, damaged = [], 0
    for line in lines:
        try:
            trial = Trial(**json.loads(line))
            if not isinstance(trial.config, dict) or not (trial.seconds or trial.error):
                raise ValueError
            trials.append(trial)
        except (TypeError, ValueError):
            damaged += 1
    if damaged:
        store.notice(f"{path}: {damaged} damaged lines are passed over")
    return trials


def append(path: Path, trials: Iterable[Trial]) -> None:
    """Add trials; they are on disk when this returns."""
    text = "".join(json.dumps(asdict(trial)) + "\n" for trial in trials)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        # A line that a kill cut short ends here, so that it takes no other with it.
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                text = "\n" + text
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
