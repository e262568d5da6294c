"""Functions of PyTorch as modules, which is what is exported."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Function(torch.nn.Module):
    """A function as a module.

    Parameters
    ----------
    function : callable
        Of one tensor, to a tensor or a tuple of them.
    """

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor):
        """What the function makes of ``x``."""
        return self.function(x)
