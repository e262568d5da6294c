"""PointNet with tiled layers: classification, part segmentation, semantic segmentation.

The architecture is that of Qi et al., "PointNet: Deep Learning on Point Sets for 3D Classification
and Segmentation" (arXiv:1612.00593): the same MLP for every point, a maximum over all points, and
two small PointNets inside (T-nets) that predict a 3 x 3 transform of the coordinates and a square
transform of the features. An MLP shared by points is a convolution of one point's width, with batch
norm and ReLU behind it. By default the MLPs have the sizes common in PyTorch, 64 | 128, 1024 around
the feature transform, with which "Tiled Bit Networks" (arXiv:2407.12075) reports its sizes; the
original's are ``widths=((64, 64), (64, 128, 1024))``.

Weights of :func:`classifier` (ModelNet40: 3 coordinates, 40 classes). Every product with trained
weights counts, the T-nets' too; layers of 64,000 weights and more are tiled:

===========================  =========================================  ======================
part                         below 64,000 weights: one bit              tiled
===========================  =========================================  ======================
T-net of coordinates         64 x 3, 128 x 64, 9 x 256                  1024 x 128, 512 x 1024,
                                                                        256 x 512
T-net of features            64 x 64, 128 x 64                          1024 x 128, 512 x 1024,
                                                                        256 x 512, 4096 x 256
shared MLP                   64 x 3, 128 x 64                           1024 x 128
classifier                   40 x 256                                   512 x 1024, 256 x 512
all                          41,600                                     3,407,872
===========================  =========================================  ======================

At ``p = 4`` that is 0.259 bits a weight. :func:`part_segmenter` (ShapeNet part: 16 categories, 50
parts) has 8,303,488 weights and 0.258 bits, :func:`semantic_segmenter` (S3DIS: 9 features, 13
classes) 3,507,200 and 0.264.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tbn_tvm.models.twin import tiled
from tbn_tvm.nn.functional import AlphaMode

Widths = tuple[Sequence[int], Sequence[int]]
"""Units of the shared MLP's layers in front of the feature transform and behind it."""


class PointLayer(nn.Sequential):
    """One layer of a shared MLP: ``(B, inputs, points) -> (B, outputs, points)``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Conv1d(inputs, outputs, 1), nn.BatchNorm1d(outputs), nn.ReLU())


def shared_mlp(widths: Sequence[int]) -> nn.Sequential:
    """Layers from each width to the next, the same for every point."""
    return nn.Sequential(*(PointLayer(*pair) for pair in itertools.pairwise(widths)))


def dense_mlp(widths: Sequence[int], outputs: int, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers with batch norm and ReLU, dropout, and a last linear layer."""
    layers = [
        part
        for inputs, width in itertools.pairwise(widths)
        for part in (nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU())
    ]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(widths[-1], outputs))


class TransformNet(nn.Module):
    """A T-net: ``(B, features, points)`` to a transform ``(B, size, size)`` near the identity.

    Parameters
    ----------
    features : int
        What a point has.
    size : int
        Side of the transform.
    widths : sequence of int
        Units of its shared MLP, the last of them those that the maximum is taken of.
    hidden : sequence of int
        Units of the layers behind the maximum.
    penalised : bool
        Whether training shall hold the transform near a rotation.
    """

    def __init__(
        self,
        features: int,
        size: int,
        widths: Sequence[int] = (64, 128, 1024),
        hidden: Sequence[int] = (512, 256),
        penalised: bool = False,
    ) -> None:
        super().__init__()
        self.size, self.penalised = size, penalised
        self.points = shared_mlp((features, *widths))
        self.cloud = dense_mlp((widths[-1], *hidden), size * size)

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.cloud(self.points(x).amax(2)).unflatten(1, (self.size, self.size))
        return matrix + torch.eye(self.size, dtype=x.dtype, device=x.device)

    def penalty(self, transform: Tensor) -> Tensor:
        """How far transforms ``A``, ``(B, size, size)``, are from rotations: the mean over the
        batch of ``||I - A A^T||^2`` (section 4.2 of the paper, which weighs it by 0.001)."""
        if not self.penalised:
            return transform.new_zeros(())
        transform = transform.float()
        excess = transform @ transform.transpose(1, 2)
        excess = excess - torch.eye(self.size, device=excess.device)
        return excess.square().sum((1, 2)).mean()


class Encoder(nn.Module):
    """What the three networks share: transforms, the shared MLP and the maximum.

    Parameters
    ----------
    features : int
        What a point has; the first three are coordinates.
    widths : pair of sequences of int
        See :data:`Widths`.
    transform_widths, transform_hidden : sequence of int
        Of both T-nets.
    """

    def __init__(
        self,
        features: int,
        widths: Widths,
        transform_widths: Sequence[int],
        transform_hidden: Sequence[int],
    ) -> None:
        super().__init__()
        before, after = widths
        self.align = TransformNet(features, 3, transform_widths, transform_hidden)
        self.before = shared_mlp((features, *before))
        self.align_features = TransformNet(
            before[-1], before[-1], transform_widths, transform_hidden, penalised=True
        )
        self.after = shared_mlp((before[-1], *after))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``(B, features, points)`` to what describes the cloud, ``(B, widths[1][-1])``, and every
        layer's features of points, the transformed ones among them."""
        coordinates = self.align(x).transpose(1, 2) @ x[:, :3]
        x = torch.cat([coordinates, x[:, 3:]], dim=1) if x.shape[1] > 3 else coordinates
        stages = []
        for layer in self.before:
            x = layer(x)
            stages.append(x)
        x = self.align_features(x).transpose(1, 2) @ x
        stages.append(x)
        for layer in self.after:
            x = layer(x)
            stages.append(x)
        return x.amax(2), stages


class PointNetClassifier(nn.Module):
    """``(B, features, points) -> (B, classes)`` logits, with ordinary float layers.

    Parameters
    ----------
    features, classes : int
        What a point has (coordinates, perhaps a normal); outputs.
    widths : pair of sequences of int
        See :data:`Widths`.
    hidden : sequence of int
        Units of the layers behind the maximum.
    transform_widths, transform_hidden : sequence of int
        Of both T-nets.
    dropout : float
        In front of the last layer.
    """

    def __init__(
        self,
        features: int = 3,
        classes: int = 40,
        widths: Widths = ((64,), (128, 1024)),
        hidden: Sequence[int] = (512, 256),
        transform_widths: Sequence[int] = (64, 128, 1024),
        transform_hidden: Sequence[int] = (512, 256),
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(features, widths, transform_widths, transform_hidden)
        self.head = dense_mlp((widths[1][-1], *hidden), classes, dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x)[0])


class PointNetSegmenter(nn.Module):
    """``(B, features, points) -> (B, classes, points)`` logits, with ordinary float layers.

    With ``categories``, a second input ``(B, categories)`` says one-hot what the whole cloud is,
    and points are judged by what all layers of the shared MLP give, as for parts of ShapeNet's
    objects; without, by the transformed features, as for scenes.

    Parameters
    ----------
    features, classes : int
        What a point has; outputs a point.
    categories : int
        Kinds of objects, 0 where the network is not told.
    widths : pair of sequences of int
        See :data:`Widths`.
    hidden : sequence of int
        Units of the shared MLP that judges a point.
    transform_widths, transform_hidden : sequence of int
        Of both T-nets.
    """

    def __init__(
        self,
        features: int = 9,
        classes: int = 13,
        categories: int = 0,
        widths: Widths = ((64,), (128, 1024)),
        hidden: Sequence[int] = (512, 256, 128),
        transform_widths: Sequence[int] = (64, 128, 1024),
        transform_hidden: Sequence[int] = (512, 256),
    ) -> None:
        super().__init__()
        before, after = widths
        self.categories, self.transformed = categories, len(before)
        self.encoder = Encoder(features, widths, transform_widths, transform_hidden)
        local = sum(before) + sum(after) if categories else before[-1]
        self.points = shared_mlp((local + after[-1] + categories, *hidden))
        self.head = nn.Conv1d(hidden[-1], classes, 1)

    def forward(self, x: Tensor, category: Tensor | None = None) -> Tensor:
        cloud, stages = self.encoder(x)
        transformed = stages.pop(self.transformed)
        local = stages if self.categories else [transformed]
        whole = torch.cat([cloud, category], dim=1) if self.categories else cloud
        whole = whole.unsqueeze(2).expand(-1, -1, x.shape[2])
        return self.head(self.points(torch.cat([*local, whole], dim=1)))


def classifier(
    p: int | None = 4, min_size: int = 64_000, alpha: AlphaMode = "tile", **sizes
) -> PointNetClassifier:
    """A trainable PointNet for ModelNet40 whose convolutions and linear layers are tiled.

    Parameters
    ----------
    p : int or None
        Compression factor; None for the float twin.
    min_size : int
        Layers with fewer weights are binary (lambda of the paper).
    alpha : {"tile", "layer"}
        One scalar a use of the tile, or one a layer.
    **sizes
        Of :class:`PointNetClassifier`.
    """
    return tiled(PointNetClassifier(**sizes), p, min_size, alpha)


def part_segmenter(
    p: int | None = 4, min_size: int = 64_000, alpha: AlphaMode = "tile", **sizes
) -> PointNetSegmenter:
    """A trainable PointNet for ShapeNet part: ``(B, 3, points)`` and ``(B, 16)`` to
    ``(B, 50, points)``.

    Parameters as :func:`classifier`; ``sizes`` of :class:`PointNetSegmenter`.
    """
    defaults = {
        "features": 3,
        "classes": 50,
        "categories": 16,
        "widths": ((64, 128, 128), (512, 2048)),
        "hidden": (256, 256, 128),
    }
    return tiled(PointNetSegmenter(**{**defaults, **sizes}), p, min_size, alpha)


def semantic_segmenter(
    p: int | None = 4, min_size: int = 64_000, alpha: AlphaMode = "tile", **sizes
) -> PointNetSegmenter:
    """A trainable PointNet for S3DIS: ``(B, 9, points) -> (B, 13, points)``.

    Parameters as :func:`classifier`; ``sizes`` of :class:`PointNetSegmenter`.
    """
    return tiled(PointNetSegmenter(**sizes), p, min_size, alpha)
