"""Coordinate descent on the bits of a trained two-layer perceptron.

Straight-through training ends near a good set of bits, not at one: with the scores at rest there
are still bits whose flip lowers the training loss. Each sweep goes through the hidden units, ranks
the bits of each by the change of the loss over the whole training set, tries the best exactly,
keeps what helps, and then fits the alphas. A flip of one first-layer bit changes one hidden unit
of each image, so trying it costs one column and not a forward pass.

With p copies of each hidden unit at p scales, the binary second layer is a readout whose weights
take 2^p values. Training settles near equal alphas, where most of these coincide; so each sweep
also fits a float readout, takes the nearest weights of that form with alphas apart, and keeps them
if they do better.

The ranking expands the loss to second order in the unit's own change, which is computed exactly:
a flip moves a unit by twice a pixel, too far for the slope alone to tell what helps.

This is an addition to the paper's recipe.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from tbn_tvm.nn import TiledLinear
from tbn_tvm.tiling import Alignment, TiledTensor

_NEAREST_ROUNDS = 50
_REFIT_ROUNDS = 3
_CHUNK = 4096  # images whose changes are in memory at once


class Polisher:
    """Improves ``fc2(relu(fc1(x)))`` bit by bit, in place.

    Parameters
    ----------
    fc1, fc2 : TiledLinear
        Without biases. ``fc1``'s tile is whole rows; ``fc2`` has ``p = 1``.
    images, labels : Tensor
        float32 ``(N, n)`` and int64 ``(N,)``.
    candidates : int
        Bits tried for each hidden unit, and of the second layer.
    """

    def __init__(
        self,
        fc1: TiledLinear,
        fc2: TiledLinear,
        images: Tensor,
        labels: Tensor,
        candidates: int = 40,
    ) -> None:
        first, second = fc1.tiled_tensor(), fc2.tiled_tensor()
        if first.alignment is not Alignment.WHOLE_ROWS or second.p != 1:
            raise ValueError(
                f"polishing needs a first tile of whole rows and a binary second layer, got "
                f"{first!r} and {second!r}"
            )
        self._layers = fc1, fc2
        self._images, self._labels = images, labels
        self._candidates = candidates

    @torch.no_grad()
    def sweep(self) -> tuple[int, float]:
        """One pass over the most promising bits.

        A sweep depends on the layers' bits and alphas only, so that a run can stop and resume
        between any two.

        Returns
        -------
        int
            Bits flipped.
        float
            Training loss (mean cross entropy) afterwards.
        """
        fc1, fc2 = self._layers
        first, second = fc1.tiled_tensor(), fc2.tiled_tensor()
        # Unique rows (r x n), output signs by copy of the tile (classes x p x r).
        rows = torch.from_numpy(first.signs().astype("float32")).reshape(-1, first.n)
        outs = torch.from_numpy(second.signs().astype("float32"))
        outs = outs.reshape(second.m, first.p, rows.shape[0])
        alphas = torch.from_numpy(first.alphas.copy()).expand(first.p)
        scale = torch.from_numpy(second.alphas.copy())

        units = self._images @ rows.T
        logits, flips = self._flip_rows(rows, units, _readout(outs, alphas, scale))
        flips += self._flip_outs(outs, units.relu(), logits, alphas, scale)
        hidden = units.relu()
        alphas, scale, loss = self._fit_alphas(outs, hidden, alphas, scale)
        other = self._refit_readout(outs, hidden, alphas, scale)
        if other[-1] < loss:
            flips += int((outs != other[0]).sum())
            outs, alphas, scale, loss = other

        fc1.load_tiled_tensor(TiledTensor.from_signs(rows.numpy(), alphas.numpy(), first.shape))
        fc2.load_tiled_tensor(TiledTensor.from_signs(outs.numpy(), scale.numpy(), second.shape))
        return flips, loss

    def _flip_rows(self, rows: Tensor, units: Tensor, readout: Tensor) -> tuple[Tensor, int]:
        """Flip first-layer bits, updating ``rows`` and ``units`` in place."""
        logits = units.relu() @ readout.T
        best, flips = self._loss(logits), 0
        for row in range(len(rows)):
            change = self._changes(rows[row], units[:, row], logits, readout[:, row])
            for column in self._promising(-change):
                if change[column] >= 0:
                    break
                unit = units[:, row] - 2 * rows[row, column] * self._images[:, column]
                moved = unit.relu() - units[:, row].relu()
                tried = torch.addcmul(logits, moved[:, None], readout[:, row][None])
                loss = self._loss(tried)
                if loss < best:
                    best, logits, flips = loss, tried, flips + 1
                    units[:, row] = unit
                    rows[row, column] *= -1
        return logits, flips

    def _changes(self, row: Tensor, unit: Tensor, logits: Tensor, readout: Tensor) -> Tensor:
        """The change of the loss for a flip of each bit of a row, to second order: shape (n,)."""
        share = logits.softmax(1)
        mean = share @ readout
        slope = (mean - readout[self._labels]) / len(logits)
        curvature = (share @ readout.square() - mean.square()) / len(logits)
        total = torch.zeros(len(row))
        for part in torch.arange(len(logits)).split(_CHUNK):
            block = slice(int(part[0]), int(part[-1]) + 1)
            moved = torch.addcmul(unit[block, None], self._images[block], -2 * row[None])
            moved.relu_().sub_(unit[block].relu()[:, None])
            total += slope[block] @ moved
            total += 0.5 * (curvature[block] @ moved.square_())
        return total

    def _flip_outs(
        self, outs: Tensor, hidden: Tensor, logits: Tensor, alphas: Tensor, scale: Tensor
    ) -> int:
        """Flip second-layer bits, updating ``outs`` in place."""
        weight = alphas[None, :, None] * scale
        gradient = (self._error(logits).T @ hidden)[:, None, :] * weight
        best, flips = self._loss(logits), 0
        for index in self._promising(outs * gradient):
            output, rest = divmod(index, outs[0].numel())
            copy, row = divmod(rest, outs.shape[2])
            tried = logits.clone()
            step = 2 * outs[output, copy, row] * alphas[copy] * scale
            tried[:, output] -= step * hidden[:, row]
            loss = self._loss(tried)
            if loss < best:
                best, logits, flips = loss, tried, flips + 1
                outs[output, copy, row] *= -1
        return flips

    def _refit_readout(
        self, outs: Tensor, hidden: Tensor, alphas: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        """Second-layer signs, alphas and scale nearest to a float readout, and their loss."""
        readout = self._float_readout(hidden, _readout(outs, alphas, scale)) / scale
        count = len(alphas)
        starts = torch.arange(count, 0, -1.0), 2.0 ** -torch.arange(float(count))
        best = None
        for start in starts:
            signs, fitted = _nearest_sums(readout, start)
            if not bool((fitted > 0).all()):
                continue
            for _ in range(_REFIT_ROUNDS):
                logits = hidden @ _readout(signs, fitted, scale).T
                self._flip_outs(signs, hidden, logits, fitted, scale)
                fitted, new_scale, loss = self._fit_alphas(signs, hidden, fitted, scale)
                # One scale serves both: it is the product that counts.
                fitted = fitted * (new_scale / scale)
            if best is None or loss < best[-1]:
                best = signs, fitted, scale, loss
        return best or (outs, alphas, scale, float("inf"))

    def _float_readout(self, hidden: Tensor, start: Tensor) -> Tensor:
        """The float second layer with the lowest loss; its classes' common part removed."""
        readout = start.clone().requires_grad_()
        optimiser = torch.optim.LBFGS([readout], max_iter=60, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = F.cross_entropy(hidden @ readout.T, self._labels)
            loss.backward()
            return loss

        with torch.enable_grad():
            optimiser.step(closure)
        # What all classes share cancels in the softmax and only costs precision.
        return readout.detach() - readout.detach().mean(0, keepdim=True)

    def _fit_alphas(
        self, outs: Tensor, hidden: Tensor, alphas: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor, float]:
        """A few quasi-Newton steps on the five scalars."""
        parameters = [alphas.clone().requires_grad_(), scale.clone().requires_grad_()]
        optimiser = torch.optim.LBFGS(parameters, max_iter=5)

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = F.cross_entropy(hidden @ _readout(outs, *parameters).T, self._labels)
            loss.backward()
            return loss

        with torch.enable_grad():
            optimiser.step(closure)
        fitted = [parameter.detach() for parameter in parameters]
        if all(bool((value > 0).all()) for value in fitted):
            # Only then does ReLU commute with them, and do they fit the format.
            alphas, scale = fitted
        return alphas, scale, self._loss(hidden @ _readout(outs, alphas, scale).T)

    def _error(self, logits: Tensor) -> Tensor:
        """The loss's gradient at the logits."""
        target = F.one_hot(self._labels, logits.shape[1])
        return (logits.softmax(1) - target) / len(target)

    def _loss(self, logits: Tensor) -> float:
        return float(F.cross_entropy(logits, self._labels))

    def _promising(self, gain: Tensor) -> list[int]:
        """Flat indices of the bits whose flip seems to lower the loss most."""
        return gain.flatten().topk(min(self._candidates, gain.numel())).indices.tolist()


def _nearest_sums(readout: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor]:
    """Signs ``(classes, p, r)`` and alphas ``(p,)`` whose sums are nearest to a readout.

    Alternates between the nearest of the ``2^p`` sums and the least-squares alphas, from alphas in
    the given proportions.
    """
    count, flat = len(alphas), readout.flatten()
    patterns = torch.tensor(list(itertools.product((1.0, -1.0), repeat=count)))
    alphas = alphas * flat.abs().max() / alphas.sum()
    for _ in range(_NEAREST_ROUNDS):
        sums = patterns @ alphas
        signs = patterns[(flat[:, None] - sums[None]).abs().argmin(1)]
        alphas = torch.linalg.lstsq(signs, flat[:, None]).solution[:, 0]
    return signs.reshape(*readout.shape, count).permute(0, 2, 1).contiguous(), alphas


def _readout(outs: Tensor, alphas: Tensor, scale: Tensor) -> Tensor:
    """The second layer as it acts on the unique hidden units: classes x r.

    Hidden units come in ``p`` scaled copies, and ReLU commutes with a positive scale, so the second
    layer sums its signs over the copies.
    """
    return (outs * alphas[None, :, None]).sum(1) * scale
