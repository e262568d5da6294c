"""How a variant of a model fares: time on this machine, figures of a board, memory on a GPU."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tbn_tvm import compiler
from tbn_tvm.errors import TbnError
from tbn_tvm.importing import Imported

if TYPE_CHECKING:
    from tbn_tvm.signature import Signature
    from tbn_tvm.targets import Board

_TURNS = 9
_SECONDS = 0.03
"""A turn's length: shorter ones drown in the clock's and the caller's overhead."""


def measure_time(
    variants: Sequence[Imported | None], target: dict, progress: Callable[[str], None]
) -> list[dict | TbnError]:
    """Microseconds of one sample, and the ratio to the first variant.

    Parameters
    ----------
    variants : sequence of Imported or None
        None is passed over.
    target : dict
        A CPU that is this machine.
    progress : callable
        Called with a word on each step.

    Returns
    -------
    list
        For each variant its figures, or the error that it could not be compiled for. Variants
        take turns, and medians are told: on a shared machine only the ratios mean anything.
    """
    runs: dict[int, Callable[[], object]] = {}
    found: list[dict | TbnError] = [{} for _ in variants]
    for number, variant in enumerate(variants):
        if variant is None:
            continue
        progress(f"compiling {number + 1} of {len(variants)}")
        try:
            artifact = compiler.compile(variant, target)
            runs[number] = artifact.prepare(*_inputs(variant.signature)).run
        except TbnError as error:
            found[number] = error
    progress("timing")
    counts = {number: _repetitions(run) for number, run in runs.items()}
    times: dict[int, list[float]] = {number: [] for number in runs}
    for _ in range(_TURNS):
        for number, run in runs.items():
            times[number].append(_seconds(run, counts[number]) / counts[number])
    medians = {number: statistics.median(values) for number, values in times.items()}
    for number, median in medians.items():
        found[number] = {"microseconds": 1e6 * median}
        if 0 in medians:
            found[number]["ratio"] = median / medians[0]
    return found


def measure_on_board(variant: Imported, board: Board) -> dict:
    """Instructions of one inference in the emulator, and bytes of the firmware.

    Without the cross compiler only what the plan tells, and without the emulator no instructions.

    Raises
    ------
    TbnError
        Where the model does not fit the board, or cannot be compiled for it.
    """
    from tbn_tvm.micro.build import COMPILER, build
    from tbn_tvm.micro.session import Session

    project = compiler.compile(variant, board.name)
    figures = {"weights": project.memory["weights"], "arena": project.memory["arena"]}
    if shutil.which(COMPILER) is None:
        return figures
    with tempfile.TemporaryDirectory(prefix="tbn_tvm_") as folder:
        path = project.save(Path(folder) / "project")
        if shutil.which("qemu-system-arm") is None:
            built = build(path)
            return {**figures, "flash": built.flash, "ram": built.ram}
        with Session(path) as session:
            session.run(*_inputs(variant.signature))
            return {
                "instructions": max(session.statistics.instructions),
                **figures,
                "flash": session.build_report.flash,
                "ram": session.build_report.ram,
            }


def plan_on_gpu(variant: Imported, target: dict) -> dict:
    """Bytes that one sample is planned to need. Neither a GPU nor nvcc is needed."""
    memory = compiler.plan(variant, target)
    return {
        "weights": memory.weights,
        "activations": memory.activations + memory.workspace,
        "peak": memory.peak,
    }


def _inputs(signature: Signature) -> list[np.ndarray]:
    """One sample, standard normal; whole numbers are zero, which every table has a place for."""
    random = np.random.default_rng(0)
    arrays = []
    for spec in signature.inputs:
        shape = [extent if isinstance(extent, int) else 1 for extent in spec.shape]
        whole = spec.dtype.startswith(("int", "uint", "bool"))
        values = np.zeros(shape) if whole else random.standard_normal(shape)
        arrays.append(values.astype(spec.dtype))
    return arrays


def _repetitions(run: Callable[[], object]) -> int:
    run()  # loads what is loaded once
    return max(1, round(_SECONDS / max(_seconds(run, 1), 1e-7)))


def _seconds(run: Callable[[], object], count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        run()
    return time.perf_counter() - started
