"""Kernels for CPUs and the rules that choose among them."""

from tbn_tvm.schedules.cpu import lookup_dense
from tbn_tvm.schedules.rules import Rule

KERNELS = {
    kernel.name: kernel
    for kernel in (
        lookup_dense.LookupDense(lookup_dense.AVX512),
        lookup_dense.LookupDense(lookup_dense.AVX2),
    )
}

RULES = tuple(
    Rule(
        kernel=f"lookup_{isa.feature}",
        operators=("relax.tbn.tiled_dense", "relax.tbn.tiled_conv1d", "relax.tbn.tiled_conv2d"),
        max_segments=1,
        dtypes=("float32",),
        feature=isa.feature,
        min_row_length=8,
        known_extents=True,
    )
    for isa in (lookup_dense.AVX512, lookup_dense.AVX2)
)
