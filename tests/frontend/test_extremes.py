"""Extremes: of infinities too, which TVM's own reductions make finite."""

import pytest
import torch

from tbn_tvm.evaluate import evaluate
from tbn_tvm.importing import import_model

INFINITY = float("inf")


class Extremes(torch.nn.Module):
    """All ways to the greatest and the least."""

    def forward(self, x):
        return (
            x.amax(1),
            x.amin((0, -1), keepdim=True),
            x.max(),
            x.min(),
            *x.max(2),
            *x.min(0, keepdim=True),
            x.argmax(),
            x.argmin(1, keepdim=True),
            x[0, 1].argmax(),
            torch.nn.functional.adaptive_max_pool2d(x, (2, 2)),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int32])
def test_extremes(dtype):
    torch.manual_seed(0)
    x = torch.randint(-9, 9, (2, 3, 5)).to(dtype)
    if dtype.is_floating_point:
        x[0, 1], x[1, :, 2] = -INFINITY, INFINITY
        x[0, :, 4] = -INFINITY
        x[1, 0] = INFINITY
    model = Extremes() if dtype.is_floating_point else Integers()
    found = evaluate(import_model(torch.export.export(model, (x,))), [x.numpy()])
    for y, expected in zip(found, model(x), strict=True):
        torch.testing.assert_close(torch.from_numpy(y), expected, rtol=0, atol=0)


class Integers(torch.nn.Module):
    """The same without pooling, which PyTorch has for floats alone."""

    def forward(self, x):
        return x.amax(1), x.amin((0, -1), keepdim=True), x.max(), x.min(), *x.max(2), *x.min(0)
