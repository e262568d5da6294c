"""A picture of a run: losses, metrics and learning rate by epoch."""

from __future__ import annotations

from pathlib import Path

from tbn_tvm.plotting import new_figure, save_figure


def plot_run(log: dict, path: Path) -> None:
    """Draw a log.

    Parameters
    ----------
    log : dict
        As :func:`tbn_tvm.training.engine.run` returns or writes it.
    path : Path
        ``.png``, ``.pdf`` or ``.svg``; replaced only once the new file is whole.
    """
    steps = [step for step in log["steps"] if step["phase"] != "chosen"]
    figure = new_figure(10, 7)
    top, bottom = figure.subplots(2, 1, sharex=True)
    _line(top, steps, "training loss", lambda step: step.get("loss"))
    names = list(dict.fromkeys(n for step in steps for n in step.get("test", {}) if n != "loss"))
    for split in ("validation", "test"):
        _line(top, steps, f"{split} loss", lambda step, s=split: step.get(s, {}).get("loss"))
        for name in names:
            _line(bottom, steps, f"{split} {name}", lambda t, s=split, n=name: t.get(s, {}).get(n))
    top.set(ylabel="loss", yscale="log")
    rates = top.twinx()
    _line(rates, steps, "learning rate", lambda step: step.get("learning_rate"), color="0.7")
    rates.set(ylabel="learning rate")
    kind = "float twin" if log["float"] else f"p = {log['recipe']['p']}"
    top.set_title(f"{log['recipe']['name']}, {kind}")
    bottom.set(xlabel="epoch, then sweep", ylabel="metric")
    for axes in (top, bottom):
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def _line(axes, steps: list[dict], label: str, value, **style) -> None:
    points = [(n, y) for n, step in enumerate(steps, 1) if (y := value(step)) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, **style)
