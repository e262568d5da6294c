"""Speed-up against batch, as an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tbn_tvm.bench.cpu import Row
from tbn_tvm.plotting import require_matplotlib

_STYLES = {"float32": "-", "float16": "--"}


def draw(rows: Sequence[Row], path: str | Path, title: str = "") -> None:
    """Draw times faster than PyTorch's float32, a panel a layer, a line a p and dtype.

    Parameters
    ----------
    rows : sequence of Row
        What was measured.
    path : str or Path
        Where the image goes; the suffix decides about its format.
    title : str
        Above it all: the machine.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(row.layer for row in rows))
    across = min(len(layers), 4)
    down = -(-len(layers) // across)
    figure = Figure(figsize=(4.2 * across, 3.4 * down + 0.4), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).reshape(-1)
    factors = sorted({row.p for row in rows})
    for panel, layer in zip(panels, layers, strict=False):
        for (p, dtype), points in _lines(rows, layer).items():
            panel.plot(
                *zip(*points, strict=True),
                _STYLES.get(dtype, ":"),
                marker="o",
                markersize=3,
                color=f"C{factors.index(p)}",
                label=f"p = {p}, {dtype}",
            )
        panel.axhline(1, color="grey", linewidth=0.8)
        panel.set(title=layer, xlabel="batch", xscale="log", yscale="log")
        batches = sorted({row.batch for row in rows if row.layer == layer})
        panel.set_xticks(batches, [str(batch) for batch in batches], minor=False)
        panel.set_xticks([], minor=True)
        panel.yaxis.set_major_formatter("{x:g}x")
    for panel in panels[len(layers) :]:
        panel.set_axis_off()
    panels[0].set_ylabel("times faster than PyTorch float32")
    panels[0].legend(fontsize=7)
    if title:
        figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=120)


def _lines(rows: Sequence[Row], layer: str) -> dict[tuple[int, str], list[tuple[int, float]]]:
    """Points ``(batch, speed-up)`` of a layer by p and dtype."""
    lines: dict[tuple[int, str], list[tuple[int, float]]] = {}
    for row in rows:
        if row.layer == layer:
            lines.setdefault((row.p, row.dtype), []).append((row.batch, row.over_float32))
    return {key: sorted(points) for key, points in lines.items()}
