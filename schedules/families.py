"""Target families: for each, its kernels and the rules that choose among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import tirx as tir
from tvm.target import codegen

from tbn_tvm.schedules.reference import Product
from tbn_tvm.schedules.rules import Rule


@dataclass(frozen=True)
class DenseKernel:
    """A kernel for the dot products of a dense product whose tile is whole rows.

    Attributes
    ----------
    layout : callable
        ``(packed tile, product) -> array``: the tile as the kernel reads it.
    prim_func : callable
        ``(product, batch or None) -> PrimFunc`` over ``x (batch, n)``, the laid-out tile and
        ``dots (batch, rows, 1)``, all float32 but the tile.
    rows : callable
        ``product -> int``: the rows of ``dots``; those past the unique rows are never read.
    """

    layout: Callable[[np.ndarray, Product], np.ndarray]
    prim_func: Callable[[Product, int | None], tir.PrimFunc]
    rows: Callable[[Product], int]


@dataclass(frozen=True)
class Family:
    """What a family of targets offers.

    Attributes
    ----------
    rules : tuple of Rule
        In order of preference.
    kernels : dict of str to DenseKernel
        By the name that rules use.
    features : frozenset of str
        CPU features of the target at hand.
    splits_reference : bool
        Whether products that no rule covers are lowered as two kernels too, so that a memory
        planner sees the stages' lifetimes; otherwise they legalise to one fused kernel.
    """

    rules: tuple[Rule, ...]
    kernels: dict[str, DenseKernel]
    features: frozenset[str]
    splits_reference: bool


def family_of(target: tvm.target.Target) -> Family:
    """The family of a TVM target: ``c`` is bare metal, everything else a CPU of TVM's run time."""
    if target.kind.name == "c":
        from tbn_tvm.schedules import cortex_m

        return Family(cortex_m.RULES, cortex_m.KERNELS, frozenset(), splits_reference=True)
    from tbn_tvm.schedules import cpu

    wanted = {rule.feature for rule in cpu.RULES if rule.feature}
    present = frozenset(
        feature
        for feature in wanted
        if target.kind.name == "llvm" and _has_feature(feature, target)
    )
    return Family(cpu.RULES, cpu.KERNELS, present, splits_reference=False)


def _has_feature(feature: str, target: tvm.target.Target) -> bool:
    # Features of other architectures are unknown to LLVM, not absent.
    triple = str(target.attrs.get("mtriple", codegen.llvm_get_system_triple()))
    return triple.startswith("x86_64") and bool(codegen.llvm_cpu_has_features(feature, target))
