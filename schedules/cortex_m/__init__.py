"""Kernels for Cortex-M and the rules that choose among them."""

from tbn_tvm.schedules.cortex_m import lookup_dense
from tbn_tvm.schedules.families import DenseKernel
from tbn_tvm.schedules.rules import Rule
from tbn_tvm.tiling import Alignment

KERNELS = {
    "lookup_dense": DenseKernel(
        layout=lookup_dense.column_words,
        prim_func=lambda product, _batch: lookup_dense.prim_func(product),
        rows=lambda product: product.unique_rows,
    )
}

RULES = (
    # A table costs about 42 instructions for 4 columns and saves about 16 for each row that
    # reads it, so it pays from three rows on.
    Rule(
        kernel="lookup_dense",
        operators=("relax.tbn.tiled_dense",),
        alignments=(Alignment.WHOLE_ROWS,),
        dtypes=("float32",),
        batch=1,
        min_unique_rows=3,
        min_row_length=8,
    ),
)
