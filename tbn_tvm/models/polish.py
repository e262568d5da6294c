"""Coordinate descent on the bits of a trained two-layer perceptron.

Straight-through training ends near a good set of bits, not at one: with the scores at rest there
are still bits whose flip lowers the training loss. Each sweep ranks all bits by the first-order
change of the loss over the whole training set, tries the best exactly, keeps what helps, and then
fits the alphas. A flip of one first-layer bit changes one hidden unit of each image, so trying it
costs one column and not a forward pass.

This is an addition to the paper's recipe.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tbn_tvm.nn import TiledLinear
from tbn_tvm.tiling import Alignment, TiledTensor


class Polisher:
    """Improves ``fc2(relu(fc1(x)))`` bit by bit, in place.

    Parameters
    ----------
    fc1, fc2 : TiledLinear
        Without biases. ``fc1``'s tile is whole rows; ``fc2`` has ``p = 1``.
    images, labels : Tensor
        float32 ``(N, n)`` and int64 ``(N,)``.
    candidates : int
        First-layer bits tried a sweep; a tenth as many of the second layer's.
    """

    def __init__(
        self,
        fc1: TiledLinear,
        fc2: TiledLinear,
        images: Tensor,
        labels: Tensor,
        candidates: int = 300,
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
        alphas, scale, loss = self._fit_alphas(outs, units.relu(), alphas, scale)

        fc1.load_tiled_tensor(TiledTensor.from_signs(rows.numpy(), alphas.numpy(), first.shape))
        fc2.load_tiled_tensor(TiledTensor.from_signs(outs.numpy(), scale.numpy(), second.shape))
        return flips, loss

    def _flip_rows(self, rows: Tensor, units: Tensor, readout: Tensor) -> tuple[Tensor, int]:
        """Flip first-layer bits, updating ``rows`` and ``units`` in place."""
        logits = units.relu() @ readout.T
        gradient = (self._error(logits) @ readout * (units > 0)).T @ self._images
        best, flips = self._loss(logits), 0
        for index in self._promising(rows * gradient, self._candidates):
            row, column = divmod(index, rows.shape[1])
            unit = units[:, row] - 2 * rows[row, column] * self._images[:, column]
            change = unit.relu() - units[:, row].relu()
            tried = torch.addcmul(logits, change[:, None], readout[:, row][None])
            loss = self._loss(tried)
            if loss < best:
                best, logits, flips = loss, tried, flips + 1
                units[:, row] = unit
                rows[row, column] *= -1
        return logits, flips

    def _flip_outs(
        self, outs: Tensor, hidden: Tensor, logits: Tensor, alphas: Tensor, scale: Tensor
    ) -> int:
        """Flip second-layer bits, updating ``outs`` in place."""
        weight = alphas[None, :, None] * scale
        gradient = (self._error(logits).T @ hidden)[:, None, :] * weight
        best, flips = self._loss(logits), 0
        for index in self._promising(outs * gradient, self._candidates // 10):
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

    @staticmethod
    def _promising(gain: Tensor, count: int) -> Iterator[int]:
        """Flat indices of the bits whose flip lowers the loss most, to first order."""
        return iter(gain.flatten().topk(min(count, gain.numel())).indices.tolist())


def _readout(outs: Tensor, alphas: Tensor, scale: Tensor) -> Tensor:
    """The second layer as it acts on the unique hidden units: classes x r.

    Hidden units come in ``p`` scaled copies, and ReLU commutes with a positive scale, so the second
    layer sums its signs over the copies.
    """
    return (outs * alphas[None, :, None]).sum(1) * scale
