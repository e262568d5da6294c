"""gemlite at one bit: Triton kernels, float16 activations (pip install gemlite)."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from common import main

GROUP = 128


def make(signs: torch.Tensor, scales: torch.Tensor):
    """A layer ``(W_q - 1/2) * 2 scale`` with ``W_q`` of one bit."""
    from gemlite.core import DType, GemLiteLinear

    m, n = signs.shape
    layer = GemLiteLinear(
        1,
        group_size=GROUP,
        in_features=n,
        out_features=m,
        input_dtype=DType.FP16,
        output_dtype=DType.FP16,
    )
    each = (2 * scales).expand(m, n // GROUP).reshape(-1, 1).half().contiguous()
    zeros = torch.full_like(each, 0.5)
    layer.pack(signs.to(torch.uint8), each, zeros, None)
    nbytes = m * n // 8 + 2 * each.numel() * each.element_size()
    return layer.forward, nbytes


if __name__ == "__main__":
    sys.exit(main(f"gemlite {version('gemlite')}", torch.float16, 1, make))
