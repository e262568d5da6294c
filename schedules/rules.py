"""Which kernel a tiled product gets: rules over what it is, written as data.

Each target family lists its rules next to its kernels; the first that fits is used, and where
none fits the reference kernel is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tbn_tvm.schedules.reference import Product, Window
from tbn_tvm.tiling import Alignment, Geometry

DENSE = "relax.tbn.tiled_dense"

RAM = "ram-"
"""What the feature begins with that tells a board's RAM, in bytes."""


CORE = "core-"
"""What the feature begins with that names a board's core."""


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
        Number of input vectors of a dense product, or of images; None where it is symbolic.
    dtype : str
        Of the activations.
    features : frozenset of str
        Features of the target: of the CPU, or the GPU's ``sm_80`` and newer ones it includes.
    window : Window, optional
        Of a convolution.
    extents : tuple of int, optional
        Spatial extents of a convolution's input; empty where they are symbolic, or not meant.
    bias : bool
        Whether a bias is added.
    zero_point : int
        Of integer activations: what means 0.
    """

    operator: str
    product: Product
    batch: int | None
    dtype: str
    features: frozenset[str] = frozenset()
    window: Window | None = None
    extents: tuple[int, ...] = ()
    bias: bool = False
    zero_point: int = 0

    @property
    def is_dense(self) -> bool:
        """Whether this is a dense product, not a convolution."""
        return self.operator == DENSE

    @property
    def out_extents(self) -> tuple[int, ...]:
        """Spatial extents of a convolution's output."""
        return tuple(int(e) for e in self.window.output_extents(list(self.extents)))

    @property
    def taps(self) -> int:
        """Elements of a convolution's window; 1 for a dense product."""
        return math.prod(self.window.kernel) if self.window else 1

    @property
    def channels(self) -> int:
        """Input channels of a group; the input length of a dense product."""
        return self.product.geometry.n // self.taps

    @property
    def ram_bytes(self) -> int | None:
        """Of a board; None where it is unknown, or plenty."""
        found = (f.removeprefix(RAM) for f in self.features if f.startswith(RAM))
        return next(map(int, found), None)

    def at_batch(self, batch: int | None) -> Workload:
        """The same with another batch."""
        return replace(self, batch=batch)

    def to_dict(self) -> dict:
        """What identifies the computation, for records: all but the target's features."""
        geometry = self.product.geometry
        window = self.window
        return {
            "operator": self.operator.removeprefix("relax."),
            "m": geometry.m,
            "n": geometry.n,
            "q": geometry.q,
            "alpha": self.product.alpha_layout.name.lower(),
            "groups": self.product.groups,
            "batch": self.batch,
            "dtype": self.dtype,
            "bias": self.bias,
            "extents": list(self.extents),
            "window": None
            if window is None
            else {
                "kernel": list(window.kernel),
                "strides": list(window.strides),
                "padding": list(window.padding),
                "dilation": list(window.dilation),
            },
        }

    @classmethod
    def from_dict(cls, data: dict, features: frozenset[str] = frozenset()) -> Workload:
        """The inverse of :meth:`to_dict`."""
        geometry = Geometry(data["m"], data["n"], data["q"])
        counts = {
            "layer": 1,
            "tile": geometry.p,
            "row": geometry.m,
            "segment": geometry.m * geometry.segments,
        }
        window = data["window"]
        return cls(
            f"relax.{data['operator']}",
            Product(geometry, counts[data["alpha"]], data["groups"]),
            data["batch"],
            data["dtype"],
            features,
            None if window is None else Window(**{k: tuple(v) for k, v in window.items()}),
            tuple(data["extents"]),
            data["bias"],
        )


@dataclass(frozen=True)
class Rule:
    """A kernel and the workloads it is right for. None means any.

    ``max_segments`` bounds the pieces of constant alpha a row is computed in: 1 covers tiles of
    whole rows, and every other alignment with one alpha a layer or a row. ``whole_rows`` asks that
    most rows be one piece: so they are too where the tile is longer than a row, all but those in
    which one use of it ends. ``max_phases`` bounds :attr:`Window.phases`. ``scratch`` tells the
    kernel's scratch in bytes, which may take half of a board's RAM.
    """

    kernel: str
    operators: tuple[str, ...]
    alignments: tuple[Alignment, ...] | None = None
    dtypes: tuple[str, ...] | None = None
    batch: int | None = None
    feature: str | None = None
    min_unique_rows: int = 1
    max_unique_rows: int | None = None
    max_groups: int | None = 1
    min_row_length: int = 1
    row_length_multiple: int = 1
    min_channels: int = 1
    max_segments: int | None = None
    whole_rows: bool = False
    known_extents: bool = False
    known_batch: bool = False
    max_phases: int | None = None
    scratch: Callable[[Workload], int] | None = None

    def fits(self, workload: Workload) -> bool:
        """Whether the rule covers a workload."""
        product = workload.product
        return (
            workload.operator in self.operators
            and (self.max_groups is None or product.groups <= self.max_groups)
            and (self.alignments is None or product.geometry.alignment in self.alignments)
            and (self.dtypes is None or workload.dtype in self.dtypes)
            and (self.batch is None or workload.batch == self.batch)
            and (self.feature is None or self.feature in workload.features)
            and product.unique_rows >= self.min_unique_rows
            and (self.max_unique_rows is None or product.unique_rows <= self.max_unique_rows)
            and product.geometry.n >= self.min_row_length
            and product.geometry.n % self.row_length_multiple == 0
            and workload.channels >= self.min_channels
            and (self.max_segments is None or product.segments <= self.max_segments)
            and (
                not self.whole_rows
                or product.segments == 1
                or product.geometry.q >= product.geometry.n
            )
            and (not self.known_extents or workload.is_dense or bool(workload.extents))
            and (
                self.max_phases is None
                or workload.window is None
                or workload.window.phases <= self.max_phases
            )
            and (not self.known_batch or workload.batch is not None)
            and self._has_room(workload)
        )

    def _has_room(self, workload: Workload) -> bool:
        if self.scratch is None or workload.ram_bytes is None:
            return True
        # Without its extents a convolution's scratch is unknown.
        known = workload.is_dense or bool(workload.extents)
        return known and 2 * self.scratch(workload) <= workload.ram_bytes


def choose(rules: Sequence[Rule], workload: Workload) -> str | None:
    """The kernel of the first rule that fits, or None for the reference kernel."""
    return next((rule.kernel for rule in rules if rule.fits(workload)), None)
