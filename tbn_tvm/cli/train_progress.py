"""The progress bar of a training run, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tbn_tvm.training.engine import Progress


@contextmanager
def train_progress() -> Iterator[Callable[[Progress], None]]:
    """A bar with the time that is left and the last epoch's figures; a line an epoch in a file."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _print_row
        return
    columns = (
        TaskProgressColumn(),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    bar = Bar(*columns, console=console)
    task = bar.add_task("first epoch")

    def report(progress: Progress) -> None:
        # Not before there is progress: what is wrong with a run is told without a bar.
        bar.start()
        changes = {"completed": progress.done, "total": progress.total}
        if progress.row is not None:
            changes["description"] = f"{progress.phase}  {_figures(progress.row)}"
        bar.update(task, **changes)

    try:
        yield report
    finally:
        if bar.live.is_started:
            bar.stop()


def _print_row(progress: Progress) -> None:
    if progress.row is not None:
        share = progress.done / progress.total
        text = f"{share:6.1%}  {progress.phase}  {_figures(progress.row)}"
        print(text, file=sys.stderr, flush=True)


def _figures(row: dict) -> str:
    parts = [f"loss {row['loss']:.4f}"] if "loss" in row else []
    for split in ("validation", "test"):
        figures = {k: v for k, v in row.get(split, {}).items() if k != "loss"}
        parts += [f"{split} {name} {value:.4f}" for name, value in figures.items()]
    return "  ".join(parts)
