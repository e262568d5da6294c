"""torchao at four bits, the fewest it multiplies with on its own (pip install torchao).

Narrower weights of its are unpacked first, or go to gemlite.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from common import main

GROUP = 128


def make(signs: torch.Tensor, scales: torch.Tensor):
    """A linear layer with weights of four bits."""
    from torchao.quantization import Int4WeightOnlyConfig, quantize_

    m, n = signs.shape
    layer = torch.nn.Linear(n, m, bias=False, device="cuda", dtype=torch.bfloat16)
    layer.weight = torch.nn.Parameter(
        torch.where(signs, scales, -scales).bfloat16(), requires_grad=False
    )
    quantize_(layer, Int4WeightOnlyConfig(group_size=GROUP))
    return layer.forward, m * n // 2 + m * n // GROUP * 4


if __name__ == "__main__":
    sys.exit(main(f"torchao {version('torchao')}", torch.bfloat16, 4, make))
