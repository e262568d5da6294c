"""What every kernel of a tiled product offers: parameters, a weight layout and a function."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

import numpy as np
from tvm import tirx as tir

from tbn_tvm.schedules.rules import Workload

Config = Mapping[str, int]
"""A value for each tunable parameter of a kernel."""

KERNEL_ATTR = "tbn.kernel"
"""Function attribute: the kernel's name, its configurations and where they come from."""


class Kernel(ABC):
    """A way to compute tiled products, written as a template with tunable parameters.

    Attributes
    ----------
    name : str
        What rules and records call it.
    version : int
        Raised whenever the meaning of its parameters or its speed changes; records of another
        version are not used.
    writes_outputs : bool
        Whether the function writes the product's outputs, bias included, in one launch:
        ``(x, words, alpha[, bias], y)``. Otherwise it computes dot products of a dense product,
        ``(x, words, dots)`` with ``dots`` float32 ``(batch, rows, 1)``, which a scatter stage
        turns into outputs.
    """

    name: str
    version: int = 1
    writes_outputs: bool = False

    def regimes(self, workload: Workload) -> tuple[Workload, ...]:
        """The workloads whose configurations the function needs, all of a known batch.

        A function for any batch may branch, on the host, into code for few and for many samples:
        then it needs one configuration for each.
        """
        return (workload,)

    def space(self, workload: Workload) -> dict[str, tuple[int, ...]]:
        """The candidates of each parameter for one regime; empty where nothing is tunable."""
        return {}

    def default(self, workload: Workload) -> dict[str, int]:
        """The configuration of one regime that rules give where nothing was measured."""
        return {name: values[0] for name, values in self.space(workload).items()}

    def valid(self, workload: Workload, config: Config) -> bool:
        """Whether a configuration of one regime makes a kernel that can be built and run."""
        return True

    def configs(self, workload: Workload) -> Iterator[dict[str, int]]:
        """Every valid configuration of one regime."""
        space = self.space(workload)
        for values in itertools.product(*space.values()):
            config = dict(zip(space, values, strict=True))
            if self.valid(workload, config):
                yield config

    def rows(self, workload: Workload, configs: tuple[Config, ...]) -> int:
        """Rows of ``dots``; those past the unique rows are never read."""
        return workload.product.unique_rows

    @abstractmethod
    def layout(
        self, tile: np.ndarray, workload: Workload, configs: tuple[Config, ...]
    ) -> np.ndarray:
        """The packed tile as the function reads it; done once, at compile time."""

    @abstractmethod
    def prim_func(self, workload: Workload, configs: tuple[Config, ...]) -> tir.PrimFunc:
        """The function, a configuration a regime; private, marked ``tbn.scheduled``."""
