"""Which kernel a tiled product gets: rules over what it is, written as data.

Each target family lists its rules next to its kernels; the first that fits is used, and where
none fits the reference kernel is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tbn_tvm.schedules.reference import Product
from tbn_tvm.tiling import Alignment


@dataclass(frozen=True)
class Workload:
    """A tiled product with what else decides about its kernel.

    Parameters
    ----------
    operator : str
        Name of the graph operator, ``relax.tbn.tiled_dense`` for example.
    product : Product
        What is multiplied.
    batch : int or None
        Number of input vectors of a dense product; None where it is symbolic, or not dense.
    dtype : str
        Of the activations.
    features : frozenset of str
        CPU features of the target.
    """

    operator: str
    product: Product
    batch: int | None
    dtype: str
    features: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Rule:
    """A kernel and the workloads it is right for. None means any."""

    kernel: str
    operators: tuple[str, ...]
    alignments: tuple[Alignment, ...] | None = None
    dtypes: tuple[str, ...] | None = None
    batch: int | None = None
    feature: str | None = None
    min_unique_rows: int = 1
    max_groups: int = 1
    min_row_length: int = 1

    def fits(self, workload: Workload) -> bool:
        """Whether the rule covers a workload."""
        product = workload.product
        return (
            workload.operator in self.operators
            and product.groups <= self.max_groups
            and (self.alignments is None or product.geometry.alignment in self.alignments)
            and (self.dtypes is None or workload.dtype in self.dtypes)
            and (self.batch is None or workload.batch == self.batch)
            and (self.feature is None or self.feature in workload.features)
            and product.unique_rows >= self.min_unique_rows
            and product.geometry.n >= self.min_row_length
        )


def choose(rules: Sequence[Rule], workload: Workload) -> str | None:
    """The kernel of the first rule that fits, or None for the reference kernel."""
    return next((rule.kernel for rule in rules if rule.fits(workload)), None)
