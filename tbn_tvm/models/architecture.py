"""What the registry knows of one architecture at one size."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class Model:
    """One architecture at one size.

    Attributes
    ----------
    name : str
        What the command line says.
    factory : str
        ``package.module:function``, imported when used. The function takes ``p`` (None for the
        float twin), ``min_size``, ``alpha`` and sizes of its own, and returns a module in training
        mode.
    sizes : mapping
        Keyword arguments of the factory that this entry fixes.
    input_shapes : tuple of tuple of int
        Of each input, without the batch. Inputs are float32.
    small, small_input_shapes
        The same architecture at sizes that compile in seconds, for tests and demonstrations:
        arguments that replace some of ``sizes``, and the inputs' shapes. Entries of one factory
        with the same of these are one small model, and tested once.
    min_size, small_min_size : int
        Lambda where none is given: layers with fewer weights are binary.
    """

    name: str
    factory: str
    sizes: Mapping[str, object]
    input_shapes: tuple[tuple[int, ...], ...]
    small: Mapping[str, object] = field(default_factory=dict)
    small_input_shapes: tuple[tuple[int, ...], ...] | None = None
    min_size: int = 64_000
    small_min_size: int = 1_000

    def build(
        self,
        p: int | None = 4,
        min_size: int | None = None,
        alpha: str = "tile",
        **sizes,
    ) -> nn.Module:
        """The untrained module, initialised from PyTorch's global generator.

        Parameters
        ----------
        p : int or None
            Compression factor; None for the float twin.
        min_size : int, optional
            Layers with fewer weights are binary; this entry's own by default.
        alpha : {"tile", "layer"}
            One scalar a use of the tile, or one a layer.
        **sizes
            Arguments of the factory that go before this entry's.
        """
        module, _, function = self.factory.partition(":")
        make = getattr(importlib.import_module(module), function)
        min_size = self.min_size if min_size is None else min_size
        return make(p=p, min_size=min_size, alpha=alpha, **{**self.sizes, **sizes})

    def reduced(self) -> Model:
        """This architecture at its small sizes."""
        return replace(
            self,
            sizes={**self.sizes, **self.small},
            input_shapes=self.small_input_shapes or self.input_shapes,
            min_size=self.small_min_size,
        )

    def example_inputs(self, batch: int = 2) -> tuple[Tensor, ...]:
        """Standard normal inputs, the same at every call.

        Parameters
        ----------
        batch : int
            Samples in each.
        """
        import torch

        generator = torch.Generator().manual_seed(0)
        return tuple(torch.randn(batch, *shape, generator=generator) for shape in self.input_shapes)

    def export(self, module: nn.Module) -> ExportedProgram:
        """Freeze a module that :meth:`build` made and export it with a dynamic batch.

        Parameters
        ----------
        module : nn.Module
            Trained or not; frozen in place.
        """
        import torch

        from tbn_tvm.nn import freeze

        batch = torch.export.Dim("batch", min=1)
        shapes = tuple({0: batch} for _ in self.input_shapes)
        return torch.export.export(freeze(module), self.example_inputs(), dynamic_shapes=shapes)

    def program(self, p: int | None = 4, **options) -> ExportedProgram:
        """The untrained model, the same at every call, frozen and exported.

        Parameters
        ----------
        p, **options
            Of :meth:`build`.
        """
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = self.build(p, **options)
        return self.export(module)
