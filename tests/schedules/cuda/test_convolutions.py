"""Convolution kernels against float64 of the dense expansion: windows, groups, dtypes, alphas.

As ``test_dense.py``: the CUDA source, emulated, with the configurations that the rules give.
"""

import pytest

from tbn_tvm.schedules.reference import AlphaLayout
from tbn_tvm.testing.products import convolution

LAYER, TILE, ROW, SEGMENT = AlphaLayout


def case(out_channels, channels, kernel, extents, p, alpha=TILE, **more):
    """Arguments of a convolution, named for reports."""
    rest = [alpha.name.lower(), *(f"{key}={value}" for key, value in more.items())]
    shape = f"{channels}->{out_channels}, {kernel} over {extents}, p={p}"
    arguments = (out_channels, channels, kernel, extents, p)
    return pytest.param(arguments, {"alpha": alpha, **more}, id=", ".join([shape, *rest]))


# Groups of six filters that begin at different places of a tile of four: no whole copies.
PARTIAL_COPIES = case(12, 32, (3, 3), (6, 7), 3, padding=(1, 1), groups=2)
ONE_ALPHA_A_ROW = [
    PARTIAL_COPIES,
    case(32, 16, (3, 3), (8, 8), 2, padding=(1, 1)),
    case(64, 40, (3, 3), (14, 14), 4, padding=(1, 1), dtype="bfloat16"),
    case(24, 40, (3, 3), (9, 13), 2, padding=(1, 1), strides=(2, 2), bias=False),
    case(64, 96, (1, 1), (7, 7), 4),
    case(24, 20, (1, 1), (13, 11), 2, strides=(2, 3)),
    case(36, 10, (5, 3), (11, 9), 2, padding=(2, 0), dilation=(1, 2), dtype="bfloat16"),
    case(53, 11, (3, 3), (17, 19), 1, LAYER, padding=(1, 1)),  # primes
    case(130, 24, (2, 2), (12, 20), 2, ROW),  # no padding needed, even window
    case(16, 9, (3, 3), (6, 7), 2, padding=(0, 1, 2, 0)),  # each side its own
    case(32, 16, (7, 7), (19, 19), 2, padding=(3, 3), strides=(2, 2)),
    case(48, 8, (1, 1), (5, 5), 24),  # more copies than are written out
    case(12, 8, (3, 3), (6, 6), 32, LAYER, padding=(1, 1)),  # tiles end inside rows
    case(32, 32, (3, 3), (8, 8), 2, padding=(1, 1), groups=2),
    case(24, 48, (3, 3), (7, 9), 1, LAYER, padding=(1, 1), groups=3, dtype="bfloat16"),
    case(30, 40, (1, 1), (5, 6), 5, LAYER, groups=5),
    case(30, 24, (5,), (50,), 3, padding=(2,)),
    case(30, 24, (5,), (50,), 1, LAYER, strides=(3,), bias=False),
    case(13, 17, (3,), (23,), 1, padding=(2,), dilation=(2,), dtype="bfloat16"),
    case(32, 32, (4,), (31,), 4, ROW, padding=(1, 2), groups=2),
]
FEW_CHANNELS = [
    case(16, 16, (3, 3), (9, 13), 4, padding=(1, 1), groups=16, dtype="float32"),  # depthwise
    case(16, 16, (3, 3), (9, 13), 16, padding=(1, 1), groups=16),
    case(32, 16, (5,), (40,), 4, ROW, padding=(2,), groups=16, dtype="float32"),
    case(8, 3, (7, 7), (20, 21), 2, padding=(3, 3), strides=(2, 2), dtype="float32"),
    case(13, 7, (3,), (23,), 1, LAYER, padding=(1,), dtype="float32"),
]
ALPHAS_INSIDE_ROWS = [
    case(7, 6, (3, 3), (9, 9), 6, dtype="float32"),
    case(12, 8, (3, 3), (9, 9), 6, groups=4, dtype="float32"),
    case(4, 8, (3, 3), (9, 9), 36, dtype="bfloat16"),
    case(5, 7, (3,), (12,), 21, SEGMENT, dtype="float32"),
    case(6, 10, (3, 1), (12, 5), 4, SEGMENT, padding=(1, 0)),
    case(3, 5, (5, 7), (11, 13), 25, dtype="float32"),  # more taps than are written out
]


@pytest.mark.parametrize(("arguments", "more"), ONE_ALPHA_A_ROW)
def test_on_tensor_cores(check, arguments, more):
    check("conv_mma", convolution(*arguments, **more), 1, 3)


@pytest.mark.parametrize(
    ("arguments", "more"), ONE_ALPHA_A_ROW[::2] + FEW_CHANNELS + ALPHAS_INSIDE_ROWS
)
def test_on_ordinary_cores(check, arguments, more):
    check("conv_simt", convolution(*arguments, **more), 1, 3)


@pytest.mark.parametrize("kernel", ["conv_mma", "conv_simt"])
def test_a_known_batch(check, kernel):
    check(kernel, convolution(32, 24, (3, 3), (10, 10), 2, batch=2, padding=(1, 1)))
