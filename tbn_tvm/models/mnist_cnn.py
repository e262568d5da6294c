"""A convolutional network for MNIST on a microcontroller: ours, in the manner of LeNet-5.

32C5, 64C3 and 128C3 of stride 2, 128C3, pool, classifier (LeCun et al., "Gradient-based learning
applied to document recognition", 1998, with batch norm and ReLU, and strides where that has
subsampling: two fifths of the multiply-adds). 246,250 parameters for 28 x 28 images, of them
239,616 in layers tiled at ``min_size = 12000``: all but the first and the classifier, which are
binary. At ``p = 4`` bits and folded scales and biases take 11.1 KB.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tbn_tvm.models.twin import tiled
from tbn_tvm.nn.functional import AlphaMode


class MnistCnn(nn.Module):
    """``(B, 1, 28, 28) -> (B, 10)``, with ordinary float layers.

    Parameters
    ----------
    widths : sequence of int
        Channels of the four convolutions.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 128)) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.features = nn.Sequential(
            *_convolution(1, first, 5, stride=2),
            *_convolution(first, second, 3, stride=2),
            *_convolution(second, third, 3, stride=2),
            *_convolution(third, fourth, 3),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Linear(fourth * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


def mnist_cnn(
    p: int | None = 4, min_size: int = 12_000, alpha: AlphaMode = "tile", **sizes
) -> nn.Module:
    """A trainable convolutional network for MNIST.

    Parameters
    ----------
    p : int or None
        Compression factor; None for the float twin.
    min_size : int
        Layers with fewer weights are binary (lambda of the paper).
    alpha : {"tile", "layer"}
        One scalar a use of the tile, or one a layer.
    **sizes
        Of :class:`MnistCnn`.
    """
    return tiled(MnistCnn(**sizes), p, min_size, alpha)
