"""Which rows of a weight share a row of the tile.

Where the tile is whole rows (``p`` divides the number of rows), the rows come in ``p`` blocks of
``r``, and row ``k`` of every block gets the signs of row ``k`` of the tile. The order of a layer's
outputs is free as long as whatever reads them follows, so rows that resemble each other can be
brought to share one. Finding the best order is balanced clustering: ``r`` clusters of ``p`` rows.
For given signs and scalars the best places of all rows are one linear assignment problem, solved
exactly; taking turns with :func:`~tbn_tvm.nn.start.nearest_tiling` never gets worse.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tbn_tvm.errors import ToolError
from tbn_tvm.nn.functional import AlphaMode
from tbn_tvm.nn.start import nearest_tiling

_ROUNDS = 30
_GAIN = 1e-4
_SEEDS = 2
"""Random orders to begin with, beside the given one and the one by the leading component."""
_MANY_ROWS = 512
"""From here on there are none: an assignment takes time with the cube of the rows."""


@torch.no_grad()
def matching_order(weight: Tensor, p: int, alpha: AlphaMode = "tile") -> Tensor:
    """An order of rows in which a tiled weight comes nearer to a float one.

    Parameters
    ----------
    weight : Tensor
        Float, shape ``(m, ...)``, ``p`` dividing ``m``.
    p : int
        Compression factor.
    alpha : {"tile", "layer", "mirrored"}
        One scalar for each use of the tile, or one for the layer.

    Returns
    -------
    Tensor
        int64 of shape ``(m,)``: row ``k`` of the reordered weight is row ``order[k]``. The same
        for the same weight; the given order where nothing is nearer.
    """
    rows = weight.detach().reshape(weight.shape[0], -1).float().cpu()
    best, chosen = -1.0, torch.arange(len(rows))
    for order in _first_orders(rows, p):
        explained, order = _improved(rows, order, p, alpha)
        if explained > best:
            best, chosen = explained, order
    return chosen


def require_scipy() -> None:
    """Refuse to go on without SciPy.

    Raises
    ------
    ToolError
        Where it is not installed, with the command that installs it.
    """
    try:
        import scipy.optimize  # noqa: F401
    except ImportError:
        raise ToolError(
            "permuting rows needs SciPy, which is not installed: pip install 'tbn-tvm[train]'"
        ) from None


def _first_orders(rows: Tensor, p: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    seeds = _SEEDS if len(rows) < _MANY_ROWS else 0
    # Neighbours along the direction in which rows differ most make a cluster.
    _, vectors = torch.linalg.eigh((rows @ rows.T).double())
    neighbours = vectors[:, -1].argsort().reshape(-1, p)
    return [
        torch.arange(len(rows)),
        neighbours.T.reshape(-1),
        *(torch.randperm(len(rows), generator=generator) for _ in range(seeds)),
    ]


def _improved(rows: Tensor, order: Tensor, p: int, alpha: AlphaMode) -> tuple[float, Tensor]:
    """Take turns until nothing gets nearer; the share explained, and the order."""
    from scipy.optimize import linear_sum_assignment

    start = nearest_tiling(rows[order], p, alpha)
    for _ in range(_ROUNDS):
        tile_rows = start.signs.reshape(-1, rows.shape[1])
        # What a row adds to the fit in each place, place (block, row of the tile) by row: the
        # rest of the squared distance depends on the row alone or on the place alone.
        worth = start.alphas.expand(p)[:, None, None] * (tile_rows @ rows.T)
        _, columns = linear_sum_assignment(worth.reshape(len(rows), -1).numpy(), maximize=True)
        candidate = torch.from_numpy(columns)
        found = nearest_tiling(rows[candidate], p, alpha)
        if found.explained <= start.explained * (1 + _GAIN):
            break
        start, order = found, candidate
    return start.explained, order
