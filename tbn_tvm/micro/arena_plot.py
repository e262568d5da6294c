"""A picture of the arena over time: which buffer lies where, from which step to which."""

from __future__ import annotations

from pathlib import Path

from tbn_tvm.plotting import check_plot, new_figure, save_figure


def plot_arena(report: dict, path: str | Path) -> Path:
    """Draw the arena of a report: steps to the right, offsets up, a rectangle a buffer.

    Parameters
    ----------
    report : dict
        Of :func:`tbn_tvm.micro.report.memory_report`.
    path : path
        A .png, .pdf or .svg file.
    """
    check_plot(path)
    from matplotlib.patches import Rectangle

    arena = report["arena"]
    steps, placed = arena["steps"], [b for b in arena["buffers"] if b["offset"] is not None]
    figure = new_figure(max(6.0, 2.5 + 0.9 * (len(steps) + 2)), 6.0)
    axes = figure.add_subplot()
    colours = {kind: f"C{index}" for index, kind in enumerate(("input", "value", "scratch"))}
    for buffer in sorted(placed, key=lambda b: b["first"]):
        left, width = buffer["first"] - 0.5, buffer["last"] - buffer["first"] + 1
        axes.add_patch(
            Rectangle(
                (left, buffer["offset"]),
                width,
                buffer["nbytes"],
                facecolor=colours[_kind(buffer)],
                edgecolor="black",
                alpha=0.6,
                hatch="//" if buffer["over"] else None,
            )
        )
        if buffer["nbytes"] >= 0.05 * arena["nbytes"]:
            axes.text(
                left + width / 2,
                buffer["offset"] + buffer["nbytes"] / 2,
                f"{_short(buffer['name'])}\n{buffer['nbytes']:,}",
                ha="center",
                va="center",
                fontsize=6,
                clip_on=True,
            )
    axes.axhline(arena["lower_bound"], color="black", linestyle=":", linewidth=1)
    axes.set_xlim(-1.6, len(steps) + 0.6)
    axes.set_ylim(0, max(1, arena["nbytes"]) * 1.05)
    axes.set_xticks(
        range(-1, len(steps) + 1),
        ["before", *(f"{index}: {step['layer']}" for index, step in enumerate(steps)), "after"],
        rotation=60,
        ha="right",
        fontsize=7,
    )
    axes.set_xlabel("step")
    axes.set_ylabel("offset in the arena, bytes")
    axes.set_title(
        f"{report['model']} on {report['board']}: arena of {arena['nbytes']:,} bytes, lower bound "
        f"{arena['lower_bound']:,} (dotted)",
        fontsize=9,
    )
    handles = [Rectangle((0, 0), 1, 1, facecolor=c, alpha=0.6) for c in colours.values()]
    names = ["input", "value", "scratch"]
    if any(buffer["over"] for buffer in placed):
        handles.append(Rectangle((0, 0), 1, 1, facecolor="white", edgecolor="black", hatch="//"))
        names.append("written over an operand")
    figure.legend(handles, names, loc="outside lower right", fontsize=7, ncols=4)
    return save_figure(figure, path)


def _kind(buffer: dict) -> str:
    if buffer["name"].startswith("input_"):
        return "input"
    return "scratch" if "_scratch" in buffer["name"] else "value"


def _short(name: str) -> str:
    """Without the step, which the axis tells."""
    step, _, rest = name.partition("_")
    return rest if step.startswith("step") and rest else name
