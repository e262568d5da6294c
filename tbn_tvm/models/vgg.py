"""VGG-small, the plain convolutional network that binary networks are compared on with CIFAR-10.

A shortened VGG-Net (Simonyan and Zisserman, arXiv:1409.1556) in the form of Zhang et al., "LQ-Nets"
(arXiv:1807.10029), which the literature on binary networks and "Tiled Bit Networks"
(arXiv:2407.12075) took over: 2 x 128C3, pool, 2 x 256C3, pool, 2 x 512C3, pool, classifier.

4,660,106 parameters for 32 x 32 x 3 and 10 classes, of them 4,656,512 in convolutions and the
classifier and 4,653,056 in layers tiled at ``min_size = 64000``: all but the first.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tbn_tvm.errors import UsageError
from tbn_tvm.models.twin import tiled
from tbn_tvm.nn.functional import AlphaMode


class VGG(nn.Module):
    """``(B, channels, image_size, image_size) -> (B, classes)``, with ordinary float layers.

    Parameters
    ----------
    widths : sequence of int
        Channels of each pair of convolutions, behind which height and width are halved.
    image_size, classes, channels : int
        Side of the square image, outputs, and colours of the image.
    """

    def __init__(
        self,
        widths: Sequence[int] = (128, 256, 512),
        image_size: int = 32,
        classes: int = 10,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if image_size % 2 ** len(widths):
            raise UsageError(f"an image of {image_size} cannot be halved {len(widths)} times")
        layers: list[nn.Module] = []
        for width in widths:
            for inputs in (channels, width):
                layers += [
                    nn.Conv2d(inputs, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
            layers.append(nn.MaxPool2d(2))
            channels = width
        self.features = nn.Sequential(*layers)
        side = image_size // 2 ** len(widths)
        self.classifier = nn.Linear(channels * side * side, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def vgg_small(
    p: int | None = 4, min_size: int = 64_000, alpha: AlphaMode = "tile", **sizes
) -> nn.Module:
    """A trainable VGG-small.

    Parameters
    ----------
    p : int or None
        Compression factor; None for the float twin.
    min_size : int
        Layers with fewer weights are binary (lambda of the paper).
    alpha : {"tile", "layer"}
        One scalar a use of the tile, or one a layer.
    **sizes
        Of :class:`VGG`.
    """
    return tiled(VGG(**sizes), p, min_size, alpha)
