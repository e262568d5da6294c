"""Multivariate time series from a CSV file: a header, a row a time step, a column a variable.

A column called ``date`` (or ``time``, ``timestamp``, ``datetime``) is left out; rows are taken as
equally far apart whatever it says. Blank lines do not count. Rows are cut
into consecutive parts for training, validation and test; values are standardised with the mean and
deviation of the training part alone. A sample is a window: ``length`` rows in, the ``horizon`` rows
behind them out. Windows of validation and test reach ``length`` rows back into the part before, so
that the first row of a part is also the first that is forecast (the protocol of Zhou et al.,
"Informer", arXiv:2012.07436, which the literature keeps to).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tbn_tvm.errors import TbnError, UsageError
from tbn_tvm.training.data import DataSet, TensorSplit, require_folder

_TIME_COLUMNS = ("date", "time", "timestamp", "datetime")


def load(
    folder: Path,
    file: str = "",
    length: int = 96,
    horizon: int = 96,
    split: Sequence[float] = (0.7, 0.1, 0.2),
) -> DataSet:
    """The windows of a CSV file.

    Parameters
    ----------
    folder : Path
        Where the file is.
    file : str
        Its name; may be left out where the folder holds one CSV file only.
    length, horizon : int
        Rows that go in, rows that are forecast.
    split : three numbers
        Shares of the rows for training, validation and test, adding up to at most 1; or, where all
        are whole numbers, how many rows each gets from the first on.

    Returns
    -------
    DataSet
        Inputs float32 ``(N, length, variables)``, targets float32 ``(N, horizon, variables)``.

    Raises
    ------
    TbnError
        Where the file is missing or malformed, or too short for a window in each part.
    UsageError
        For lengths or a split that cannot be.
    """
    folder = Path(folder)
    require_folder(folder, file or "a CSV file")
    path = folder / file if file else _only_csv(folder)
    values = read_csv(path)
    parts = _rows(split, len(values), path)
    for name, value in (("length", length), ("horizon", horizon)):
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"{name} {value!r}: expected a whole number of at least 1")
    train = values[: parts[0]]
    deviation = train.std(0)
    # A variable that never moves stays at zero.
    standard = torch.from_numpy((values - train.mean(0)) / np.where(deviation > 0, deviation, 1.0))
    splits, end = [], 0
    for name, rows in zip(("training", "validation", "test"), parts, strict=True):
        begin, end = max(end - length, 0), end + rows
        if end - begin < length + horizon:
            raise TbnError(
                f"{path}: the {name} part has {end - begin} rows, with those that it may look back "
                f"at; expected at least {length + horizon}, length and horizon"
            )
        splits.append(_windows(standard[begin:end].float(), length, horizon))
    return DataSet(train=splits[0], validation=splits[1], test=splits[2])


def read_csv(path: Path) -> np.ndarray:
    """The numbers of a CSV file, float64 ``(rows, variables)``.

    Raises
    ------
    TbnError
        Where the file cannot be read, or a row is not as long as the header or holds something
        else than finite numbers.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            # Blank lines, which many programs leave at the end, are no rows.
            header, *rows = filter(None, csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TbnError(f"{path}: cannot be read as CSV: {error}") from None
    except ValueError:
        raise TbnError(f"{path}: is empty; expected a header and rows of numbers") from None
    names = [name.strip().lower() for name in header]
    _check_header(path, names)
    kept = [place for place, name in enumerate(names) if name not in _TIME_COLUMNS]
    if not kept or not rows:
        raise TbnError(f"{path}: expected a header with variables, and rows of numbers")
    values = np.empty((len(rows), len(kept)))
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise TbnError(
                f"{path}: row {number + 1} behind the header has {len(row)} fields, the header "
                f"{len(header)}"
            )
        try:
            values[number] = [row[place] for place in kept]
        except ValueError:
            values[number] = np.nan
        if not np.isfinite(values[number]).all():
            raise TbnError(
                f"{path}: row {number + 1} behind the header: {','.join(row)[:80]!r} is not all "
                "finite numbers; fill in or remove such rows first"
            )
    return values


def _check_header(path: Path, names: list[str]) -> None:
    """Refuse what would be read as something else than it is."""
    if len(names) == 1:
        for mark, told in ((";", "semicolons"), ("\t", "tabulators")):
            if mark in names[0]:
                raise TbnError(f"{path}: fields are separated by {told}; expected commas")
    if "" in names:
        raise TbnError(
            f"{path}: column {names.index('') + 1} has no name in the header; name it where it is "
            "a variable, remove it where it numbers the rows"
        )
    if all(_is_number(name) for name in names):
        raise TbnError(f"{path}: the first row is numbers; expected a header with names")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _only_csv(folder: Path) -> Path:
    found = sorted(folder.glob("*.csv"))
    if len(found) != 1:
        raise TbnError(
            f"{folder}: holds {len(found)} CSV files; name one with the data option 'file'"
        )
    return found[0]


def _rows(split: Sequence[float], rows: int, path: Path) -> tuple[int, int, int]:
    """Rows of each part."""
    told = f"split {split!r}: expected three numbers above 0, shares that add up to at most 1 or"
    told += " whole numbers of rows"
    if len(split) != 3 or not all(isinstance(part, (int, float)) and part > 0 for part in split):
        raise UsageError(told)
    if all(isinstance(part, int) for part in split):
        if sum(split) > rows:
            raise TbnError(f"{path}: has {rows} rows; the split {tuple(split)} asks for more")
        return tuple(split)
    if sum(split) > 1 + 1e-9:
        raise UsageError(told)
    train, test = int(rows * split[0]), int(rows * split[2])
    return train, min(round(rows * sum(split)), rows) - train - test, test


def _windows(values: torch.Tensor, length: int, horizon: int) -> TensorSplit:
    windows = values.unfold(0, length + horizon, 1).transpose(1, 2)
    return TensorSplit((windows[:, :length],), windows[:, length:])
