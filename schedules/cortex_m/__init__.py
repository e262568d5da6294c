"""Kernels for Cortex-M and the rules that choose among them."""

from tbn_tvm.schedules.cortex_m import direct_conv, lookup_conv, lookup_dense, mve, sign_dense
from tbn_tvm.schedules.rules import Rule

KERNELS = {
    kernel.name: kernel
    for kernel in (
        lookup_dense.LookupDense(),
        lookup_conv.LookupConv(),
        sign_dense.SignDense(),
        direct_conv.DirectConv(),
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
        scratch=lookup_conv.ring_bytes,
    ),
    # A table costs about 42 instructions for 4 columns and saves about 16 for each row that
    # reads it, so it pays from three rows on.
    Rule(
        kernel="lookup_dense",
        operators=("relax.tbn.tiled_dense",),
        max_segments=1,
        dtypes=("float32", "int8"),
        min_unique_rows=3,
        known_batch=True,
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
        scratch=lookup_conv.ring_bytes,
    ),
    # Everything else: rows in pieces, and what too few rows would read from tables.
    Rule(
        kernel="sign_dense",
        operators=("relax.tbn.tiled_dense",),
        dtypes=("float32", "int8"),
        known_batch=True,
    ),
    Rule(
        kernel="direct_conv",
        operators=CONVOLUTIONS,
        dtypes=("float32", "int8"),
        batch=1,
        max_groups=None,
        known_extents=True,
    ),
)
