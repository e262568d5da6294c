"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tbn_tvm.errors import TbnError


@contextmanager
def replacing(path: Path, what: str) -> Iterator[Path]:
    """A path beside another to write to; it takes the other's place once it is whole.

    Parameters
    ----------
    path : Path
        Where the file is to be.
    what : str
        What it is called in errors.

    Raises
    ------
    TbnError
        Where it cannot be written: no space, no permission.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # PyTorch's zip writer raises the latter
        _remove(partial)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise TbnError(f"{path}: the {what} cannot be written: {reason}") from None
    except BaseException:
        _remove(partial)
        raise


def _remove(partial: Path) -> None:
    # What stands in its way is not ours, and no second failure may hide the first.
    with contextlib.suppress(OSError):
        partial.unlink(missing_ok=True)
