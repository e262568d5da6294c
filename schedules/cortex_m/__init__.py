"""Kernels for Cortex-M and the rules that choose among them."""

from tbn_tvm.schedules.cortex_m import lookup_conv, lookup_dense, lookup_dense_int8, mve
from tbn_tvm.schedules.rules import Rule

KERNELS = {
    kernel.name: kernel
    for kernel in (
        lookup_dense.LookupDense(),
        lookup_conv.LookupConv(),
        lookup_dense_int8.LookupDenseInt8(),
        mve.MveDense(),
        mve.MveConv(),
    )
}

CONVOLUTIONS = ("relax.tbn.tiled_conv1d", "relax.tbn.tiled_conv2d")

RULES = (
    # Vectors make tables four times faster and read them for four rows, or eight, at once.
    Rule(
        kernel="mve_dense",
        operators=("relax.tbn.tiled_dense",),
        max_segments=1,
        dtypes=("float32", "int8"),
        feature="mve",
        min_unique_rows=2,
        known_batch=True,
    ),
    Rule(
        kernel="mve_conv",
        operators=CONVOLUTIONS,
        max_segments=1,
        dtypes=("float32", "int8"),
        batch=1,
        feature="mve",
        max_groups=None,
        min_unique_rows=2,
        min_channels=3,
        known_extents=True,
    ),
    # A table costs about 42 instructions for 4 columns and saves about 16 for each row that
    # reads it, so it pays from three rows on.
    Rule(
        kernel="lookup_dense",
        operators=("relax.tbn.tiled_dense",),
        max_segments=1,
        dtypes=("float32",),
        batch=1,
        min_unique_rows=3,
        min_row_length=8,
    ),
    Rule(
        kernel="lookup_dense_int8",
        operators=("relax.tbn.tiled_dense",),
        max_segments=1,
        dtypes=("int8",),
        batch=1,
        min_unique_rows=3,
    ),
    # As above, and a table serves every tap besides: even two filters pay.
    Rule(
        kernel="lookup_conv",
        operators=CONVOLUTIONS,
        max_segments=1,
        dtypes=("float32", "int8"),
        batch=1,
        max_groups=None,
        min_unique_rows=2,
        min_channels=3,
        known_extents=True,
    ),
)
