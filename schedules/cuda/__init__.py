"""Kernels for NVIDIA GPUs and the rules that choose among them."""

from __future__ import annotations

import tvm

from tbn_tvm.schedules.cuda import (
    conv_mma,
    conv_simt,
    dense_mma,
    dense_segments,
    dense_simt,
    dense_wgmma,
)
from tbn_tvm.schedules.kernel import Kernel
from tbn_tvm.schedules.rules import DENSE, Rule

NARROW = ("float32", "float16", "bfloat16")
"""Dtypes whose sums are float32."""

CONVOLUTIONS = ("relax.tbn.tiled_conv1d", "relax.tbn.tiled_conv2d")

KERNELS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        dense_wgmma.DenseWgmma(),
        dense_mma.DenseMma(),
        dense_simt.DenseSimt(),
        dense_segments.DenseSegments(),
        conv_mma.ConvMma(),
        conv_simt.ConvSimt(),
    )
}

RULES: tuple[Rule, ...] = (
    Rule(
        kernel="dense_wgmma",
        operators=(DENSE,),
        dtypes=("float16", "bfloat16"),
        feature="sm_90a",
        max_segments=1,
        # The copy engine wants rows of activations in whole 16 bytes.
        row_length_multiple=8,
        min_row_length=64,
        min_unique_rows=64,
    ),
    Rule(
        kernel="dense_mma",
        operators=(DENSE,),
        dtypes=("float16", "bfloat16"),
        feature="sm_80",
        max_segments=1,
        min_row_length=16,
    ),
    Rule(kernel="dense_simt", operators=(DENSE,), dtypes=NARROW, max_segments=1),
    Rule(
        kernel="dense_segments",
        operators=(DENSE,),
        dtypes=NARROW,
        max_segments=dense_segments.MAX_SEGMENTS,
    ),
    Rule(
        kernel="conv_mma",
        operators=CONVOLUTIONS,
        dtypes=("float16", "bfloat16"),
        feature="sm_80",
        max_segments=1,
        max_groups=None,
        min_channels=8,
        known_extents=True,
    ),
    Rule(kernel="conv_simt", operators=CONVOLUTIONS, dtypes=NARROW, max_groups=None),
)


def features(target: tvm.target.Target) -> frozenset[str]:
    """The instructions a target has: ``sm_80``, ``sm_90`` and, where its architecture is named
    with the suffix, those of Hopper alone: ``sm_90a``."""
    if target.kind.name != "cuda":
        return frozenset()
    arch = str(target.attrs.get("arch", "sm_80"))
    number = int("".join(c for c in arch if c.isdigit()))
    present = {f"sm_{known}" for known in (80, 90) if number >= known}
    return frozenset(present | ({arch} if arch == "sm_90a" else set()))
