"""A picture of a model: size and arithmetic of each layer, float against binary against tiled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tbn_tvm.errors import TbnError
from tbn_tvm.plotting import check_plot, new_figure, save_figure, shortened

if TYPE_CHECKING:
    from tbn_tvm.inspect import LayerInfo

_NAME_LENGTH = 40


def plot_layers(rows: Sequence[LayerInfo], path: str | Path, title: str = "") -> Path:
    """Draw a line a layer, in the order of execution; both scales are logarithmic.

    Parameters
    ----------
    rows : sequence of LayerInfo
        What :func:`tbn_tvm.inspect.describe_layers` gives.
    path : path
        A .png, .pdf or .svg file.
    title : str
        Above it all.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    TbnError
        Where there are no layers.
    """
    check_plot(path)
    if not rows:
        raise TbnError("there is nothing to draw: the model has no layers with constant weights")
    figure = new_figure(11.0, 1.9 + 0.24 * max(len(rows), 3))
    sizes, work = figure.subplots(1, 2, sharey=True)
    places = range(len(rows))
    _dots(
        sizes,
        places,
        {
            "float32": [row.float_bytes for row in rows],
            "one bit a weight": [row.binary_bytes for row in rows],
            "as stored": [row.nbytes for row in rows],
        },
    )
    _dots(
        work,
        places,
        {
            "float32": [row.macs_dense for row in rows],
            "as computed": [row.macs for row in rows],
        },
    )
    sizes.set_yticks(
        places, [f"{shortened(row.name, _NAME_LENGTH)}  {_kind(row)}" for row in rows], fontsize=7
    )
    # The first layer on top, as in a table.
    sizes.set_ylim(len(rows) - 0.5, -0.5)
    sizes.set_xlabel("weights of a layer, bytes")
    work.set_xlabel("multiply-adds of a layer, one sample")
    handles, names = sizes.get_legend_handles_labels()
    names[-1] = "as stored and computed"
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    return save_figure(figure, path)


_STYLES = {
    # Hollow and larger, so that a mark on the same place shows inside.
    "float32": {"edgecolors": "0.4", "facecolors": "none", "marker": "s", "s": 44},
    "one bit a weight": {"edgecolors": "C1", "facecolors": "none", "marker": "o", "s": 40},
    "as stored": {"color": "C0", "marker": "D", "s": 12},
    "as computed": {"color": "C0", "marker": "D", "s": 12},
}


def _dots(axes, places: Sequence[int], series: dict[str, list[int]]) -> None:
    """A row of dots a layer, its ends joined."""
    ends = list(zip(*series.values(), strict=True))
    axes.hlines(places, [min(e) for e in ends], [max(e) for e in ends], color="0.85", zorder=1)
    for name, values in series.items():
        axes.scatter(values, places, label=name, zorder=2, **_STYLES[name])
    axes.set_xscale("log")
    axes.grid(axis="x", color="0.93", zorder=0)
    axes.tick_params(axis="x", which="both", labelsize=8)


def _kind(row: LayerInfo) -> str:
    if row.p is None:
        return "(float)"
    return "(binary)" if row.p == 1 else f"(p = {row.p})"
