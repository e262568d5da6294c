"""A picture of a sweep: size, arithmetic and what the target takes, by compression factor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tbn_tvm.plotting import check_plot, new_figure, save_figure
from tbn_tvm.sweep.rows import Row, Sweep

_MEASURES = (
    ("instructions", "instructions of one inference"),
    ("ratio", "time, float weights = 1"),
    ("microseconds", "microseconds of one inference"),
    ("peak", "planned memory, bytes"),
    ("flash", "flash, bytes"),
)
"""What the third panel may show, by precedence."""


def plot_sweep(result: Sweep, path: str | Path) -> Path:
    """Draw a mark a factor in each panel; a factor without a figure keeps an empty place.

    Parameters
    ----------
    result : Sweep
        Of :func:`tbn_tvm.sweep.sweep`.
    path : path
        A .png, .pdf or .svg file.
    """
    check_plot(path)
    panels: list[tuple[str, Callable[[Row], float | None]]] = [
        ("weights, bytes", lambda row: row.sums.get("nbytes")),
        ("multiply-adds of one sample", lambda row: row.sums.get("macs")),
    ]
    for key, words in _MEASURES:
        if any(key in row.measured for row in result.rows):
            panels.append((words, lambda row, key=key: row.measured.get(key)))
            break
    width = max(3.4, 0.62 * len(result.rows) + 1.0)
    figure = new_figure(width * len(panels), 3.8)
    for axes, (words, value) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        _marks(axes, result.rows, value)
        axes.set_title(words, fontsize=9)
        axes.set_xlabel("p", fontsize=9)
    figure.suptitle(f"{result.model} on {result.target}", fontsize=10)
    return save_figure(figure, path)


def _marks(axes, rows: tuple[Row, ...], value: Callable[[Row], float | None]) -> None:
    values = [value(row) for row in rows]
    for place, (row, height) in enumerate(zip(rows, values, strict=True)):
        if height is None:
            axes.text(
                place,
                0.02,
                "none",
                rotation=90,
                ha="center",
                va="bottom",
                fontsize=8,
                color="0.4",
                transform=axes.get_xaxis_transform(),
            )
            continue
        style = {"c": "0.4", "marker": "s"} if row.p is None else {"c": "C0", "marker": "D"}
        axes.scatter([place], [height], s=30, zorder=2, **style)
        axes.annotate(
            _short(height),
            (place, height),
            (0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=7,
        )
    axes.set_xticks(range(len(rows)), [row.label for row in rows], fontsize=8)
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.tick_params(axis="y", which="both", labelsize=7)
    known = [height for height in values if height]
    if known:
        axes.set_yscale("log")
        axes.grid(axis="y", color="0.93", zorder=0)
        axes.set_ylim(min(known) / 2, max(known) * 2)


def _short(number: float) -> str:
    """Three digits and a prefix."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g}{prefix}"
    return f"{number:.3g}"
