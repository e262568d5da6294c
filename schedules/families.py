"""Target families: for each, its kernels and the rules that choose among them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import tvm
from tvm.target import codegen

from tbn_tvm.schedules.kernel import Kernel
from tbn_tvm.schedules.rules import CORE, RAM, Rule


@dataclass(frozen=True)
class Family:
    """What a family of targets offers.

    Attributes
    ----------
    name : str
        ``cpu``, ``cuda`` or ``cortex_m``.
    rules : tuple of Rule
        In order of preference.
    kernels : dict of str to Kernel
        By the name that rules and records use.
    features : frozenset of str
        Features of the target at hand.
    splits_reference : bool
        Whether products that no rule covers are lowered as two kernels too, so that a memory
        planner sees the stages' lifetimes; otherwise they legalise to one fused kernel.
    """

    name: str
    rules: tuple[Rule, ...]
    kernels: dict[str, Kernel]
    features: frozenset[str]
    splits_reference: bool


def family_of(target: tvm.target.Target) -> Family:
    """The family of a TVM target: ``c`` is bare metal, ``cuda`` and ``opencl`` are GPUs,
    everything else a CPU of TVM's run time."""
    kind = target.kind.name
    if kind == "c":
        from tbn_tvm.schedules import cortex_m

        features = frozenset(target.keys) - {"cpu"}
        return Family("cortex_m", cortex_m.RULES, cortex_m.KERNELS, features, True)
    if kind in ("cuda", "opencl"):
        from tbn_tvm.schedules import cuda

        return Family("cuda", cuda.RULES, cuda.KERNELS, cuda.features(target), False)
    from tbn_tvm.schedules import cpu

    wanted = {rule.feature for rule in cpu.RULES if rule.feature}
    present = frozenset(f for f in wanted if kind == "llvm" and _has_feature(f, target))
    return Family("cpu", cpu.RULES, cpu.KERNELS, present, False)


def bare_metal(
    features: Iterable[str] = (), ram_bytes: int | None = None, core: str | None = None
) -> tvm.target.Target:
    """The target of generated C, for a core with some of the features of boards.

    Kernels that want much scratch are not chosen where the RAM for it is little. Tuning records
    are for a core, which the target can name.
    """
    ram = [] if ram_bytes is None else [f"{RAM}{ram_bytes}"]
    cores = [] if core is None else [f"{CORE}{core.lower()}"]
    return tvm.target.Target({"kind": "c", "keys": ["cpu", *sorted(features), *ram, *cores]})


def _has_feature(feature: str, target: tvm.target.Target) -> bool:
    # Features of other architectures are unknown to LLVM, not absent.
    triple = str(target.attrs.get("mtriple", codegen.llvm_get_system_triple()))
    return triple.startswith("x86_64") and bool(codegen.llvm_cpu_has_features(feature, target))
