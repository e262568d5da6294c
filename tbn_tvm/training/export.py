"""From a trained model to the file that the compiler takes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tbn_tvm.nn import freeze
from tbn_tvm.training.files import replacing


def export(model: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> None:
    """Freeze a model in place and save it as a ``.pt2`` with a dynamic batch.

    Parameters
    ----------
    model : nn.Module
        Tiled or float.
    inputs : tuple of Tensor
        A batch of two, for shapes and dtypes.
    path : Path
        Replaced only once the new file is whole.

    Raises
    ------
    TbnError
        Where the file cannot be written.
    """
    frozen = freeze(model).cpu()
    batch = torch.export.Dim("batch", min=1)
    examples = tuple(torch.zeros(x.shape, dtype=x.dtype) for x in inputs)
    shapes = tuple({0: batch} for _ in inputs)
    program = torch.export.export(frozen, examples, dynamic_shapes=shapes)
    with replacing(path, "model") as partial, partial.open("wb") as file:
        torch.export.save(program, file)
