"""Speed-up against batch on a GPU, as an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tbn_tvm.plotting import require_matplotlib

Point = tuple[str, int, int, float]
"""Layer, p, batch, times faster."""


def draw(points: Sequence[Point], path: str | Path, title: str = "") -> None:
    """Draw times faster than the fastest rival, a panel a layer, a line a p.

    Parameters
    ----------
    points : sequence of (str, int, int, float)
        Layer, p, batch and ratio.
    path : str or Path
        Where the image goes; the suffix decides about its format.
    title : str
        Above it all: the device.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(layer for layer, *_ in points))
    across = max(1, min(len(layers), 3))
    down = max(1, -(-len(layers) // across))
    figure = Figure(figsize=(4.6 * across, 3.6 * down + 0.4), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).reshape(-1)
    factors = sorted({p for _, p, _, _ in points})
    for panel, layer in zip(panels, layers, strict=False):
        for p in factors:
            line = sorted({(b, ratio) for name, q, b, ratio in points if (name, q) == (layer, p)})
            if line:
                color = f"C{factors.index(p)}"
                panel.plot(*zip(*line, strict=True), "-o", ms=3, color=color, label=f"p = {p}")
        panel.axhline(1, color="grey", linewidth=0.8)
        panel.set(title=layer, xlabel="batch", xscale="log", yscale="log")
        panel.yaxis.set_major_formatter("{x:g}x")
        panel.legend(fontsize=7)
    for panel in panels[len(layers) :]:
        panel.set_axis_off()
    panels[0].set_ylabel("times faster than PyTorch")
    if title:
        figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=120)


def points_of(results: Sequence[dict], dtype: str = "float16") -> list[Point]:
    """Points from rows as JSON has them: those where rules or records chose the kernel."""
    points = []
    for row in results:
        case = row["case"]
        if case["kernel"] is None and case["dtype"] == dtype:
            layer = f"{case['m']}x{case['n']}"
            if case["side"] is not None:
                layer += f", {case['taps']}x{case['taps']} on {case['side']}x{case['side']}"
            points.append((layer, case["p"], case["batch"], row["ratio"]))
    # One batch is no line.
    batches: dict[tuple, set] = {}
    for layer, p, batch, _ in points:
        batches.setdefault((layer, p), set()).add(batch)
    return [point for point in points if len(batches[point[:2]]) > 1]
