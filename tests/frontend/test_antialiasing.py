"""Images are made smaller with antialiasing where PyTorch does so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

import tbn_tvm


@pytest.mark.parametrize(
    "options",
    [
        {"size": (5, 13), "mode": "bilinear"},
        {"size": (5, 3), "mode": "bicubic", "align_corners": True},
        {"scale_factor": 0.4, "mode": "bilinear"},
    ],
    ids=str,
)
def test_as_pytorch_resizes(options):
    class Smaller(torch.nn.Module):
        def forward(self, x):
            return interpolate(x, antialias=True, **options)

    torch.manual_seed(0)
    batch, x = torch.export.Dim("batch", min=1), torch.randn(2, 3, 8, 9)
    artifact = tbn_tvm.compile(torch.export.export(Smaller(), (x,), dynamic_shapes=({0: batch},)))
    for images in (x, x[:1]):
        np.testing.assert_allclose(artifact.run(images.numpy()), Smaller()(images), atol=1e-6)
