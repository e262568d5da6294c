"""What there is to tune in a model: the workloads that lowering asks records about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import tvm

from tbn_tvm import pipeline
from tbn_tvm.relay_passes import LowerTiledProducts
from tbn_tvm.schedules.families import Family
from tbn_tvm.schedules.kernel import Kernel
from tbn_tvm.schedules.rules import Workload

ANY_BATCH = (1, 16, 256)
"""Numbers of samples that stand for a symbolic batch."""


@dataclass(frozen=True)
class Problem:
    """A workload of a model, and the kernels that could compute it.

    Attributes
    ----------
    workload : Workload
        As lowering sees it.
    layers : tuple of int
        Positions of the products that have it, in the order of the graph.
    kernels : tuple of str
        Those whose rules fit, first the one that rules choose.
    """

    workload: Workload
    layers: tuple[int, ...]
    kernels: tuple[str, ...]

    @property
    def label(self) -> str:
        """For tables: layers, shape and batch."""
        geometry = self.workload.product.geometry
        batch = self.workload.batch or "any"
        first = ", ".join(map(str, self.layers[:3])) + (", ..." if len(self.layers) > 3 else "")
        return f"{first}: {geometry.m}x{geometry.n}, p {geometry.p}, batch {batch}"

    @property
    def weight(self) -> float:
        """Multiply-adds a sample in all its layers: its share of the trials.

        Batches that are asked for count alike.
        """
        pixels = math.prod(self.workload.out_extents) if self.workload.extents else 1
        return float(self.workload.product.macs * pixels * len(self.layers))


def samples(kernel: Kernel, workload: Workload) -> tuple[int, ...]:
    """Values of a kernel's symbolic number of samples to measure with; one where it has none."""
    if workload.batch is not None:
        return (workload.batch,)
    windows = math.prod(workload.out_extents) if workload.extents else 1
    # Where a convolution is a product of its windows, they are the samples.
    return tuple(batch * (1 if kernel.writes_outputs else windows) for batch in ANY_BATCH)


def problems_of(
    mod: tvm.IRModule,
    target: tvm.target.Target,
    family: Family,
    batches: Sequence[int | None] = (None,),
    layers: Sequence[int] = (),
) -> list[Problem]:
    """Everything in a model that has something to tune.

    Parameters
    ----------
    mod : tvm.IRModule
        Imported, tiled layers recognised.
    target : tvm.target.Target
        What it is compiled for.
    family : Family
        That target's.
    batches : sequence of int or None
        What a symbolic batch is fixed to; None leaves it.
    layers : sequence of int
        Positions of the only layers of interest; all by default.
    """
    found: dict[Workload, list[int]] = {}
    for batch in batches:
        for position, workload in enumerate(_asked(mod, target, batch)):
            if not layers or position in layers:
                found.setdefault(workload, []).append(position)
    problems = []
    for workload, positions in found.items():
        fitting = dict.fromkeys(rule.kernel for rule in family.rules if rule.fits(workload))
        kernels = tuple(fitting)
        if kernels:
            problems.append(Problem(workload, tuple(positions), kernels))
    return problems


def _asked(mod: tvm.IRModule, target: tvm.target.Target, batch: int | None) -> list[Workload]:
    """The workload of each product as lowering asks about it."""
    listener = _Listener()
    _, passes = pipeline.host_phases(target, batch)[0]
    passes = [*passes, LowerTiledProducts(target, records=listener)]
    pipeline.run(mod, [("simplify", passes)], target)
    return listener.workloads


class _Listener:
    """Records without an answer, which remember the questions."""

    def __init__(self) -> None:
        self.workloads: list[Workload] = []

    def kernel(self, _family: Family, workload: Workload) -> None:
        self.workloads.append(workload)

    def config(self, _kernel: Kernel, _regime: Workload) -> None:
        return None
