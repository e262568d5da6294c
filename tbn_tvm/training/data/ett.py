"""ETTh1, hourly temperatures and loads of a transformer station (Zhou et al., arXiv:2012.07436).

The published ``ETTh1.csv``: ``date`` and seven variables, 17,420 rows. By the usual protocol the
first 12 months of 30 days are for training, the next 4 for validation, the next 4 for test: 8,640,
2,880 and 2,880 rows; what is left is not used.
"""

from __future__ import annotations

from pathlib import Path

from tbn_tvm.errors import TbnError
from tbn_tvm.training.data import DataSet, require_folder, series

FILE = "ETTh1.csv"
SPLIT = (8640, 2880, 2880)
"""Rows for training, validation and test."""


def load(folder: Path, length: int = 96, horizon: int = 96) -> DataSet:
    """ETTh1 from a folder, or its subfolder ``ett``; see :func:`tbn_tvm.training.data.series.load`.

    Parameters
    ----------
    folder : Path
        Where ``ETTh1.csv`` is.
    length, horizon : int
        Hours that go in, hours that are forecast.

    Raises
    ------
    TbnError
        Where the file is missing or malformed.
    """
    folder = Path(folder)
    require_folder(folder, FILE)
    for place in (folder, folder / "ett"):
        if (place / FILE).is_file():
            return series.load(place, FILE, length, horizon, SPLIT)
    raise TbnError(f"{folder}: holds neither {FILE} nor ett/{FILE}")
