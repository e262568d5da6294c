"""What all pictures share: which files can be drawn, and writing them whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tbn_tvm.errors import ToolError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SUFFIXES = (".png", ".pdf", ".svg")


def require_matplotlib() -> None:
    """Refuse to go on without matplotlib, before anything is computed.

    Raises
    ------
    ToolError
        Where it is not installed, with the command that installs it.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ToolError(
            "--plot needs matplotlib, which is not installed: pip install 'tbn-tvm[plot]'"
        ) from None


def check_plot(path: str | Path) -> None:
    """Refuse what cannot be drawn, before anything is computed for it.

    Raises
    ------
    UsageError
        For a file of another kind.
    ToolError
        Where matplotlib is missing.
    """
    if Path(path).suffix not in _SUFFIXES:
        raise UsageError(f"--plot {path}: expected a file that ends in {', '.join(_SUFFIXES)}")
    require_matplotlib()


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches that no window shows and no global state holds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure; an existing file is replaced only once the new one is whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        figure.savefig(partial, dpi=150, format=path.suffix[1:])
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return path


def shortened(name: str, length: int) -> str:
    """A name of at most this many characters: the end tells layers apart."""
    return name if len(name) <= length else "…" + name[1 - length :]
