"""Kernels for CPUs and the rules that choose among them."""

from functools import partial

from tbn_tvm.schedules.cpu import lookup_dense
from tbn_tvm.schedules.families import DenseKernel
from tbn_tvm.schedules.rules import Rule
from tbn_tvm.tiling import Alignment


def _lookup(isa: lookup_dense.Isa) -> DenseKernel:
    return DenseKernel(
        layout=partial(lookup_dense.row_words, isa=isa),
        prim_func=partial(lookup_dense.prim_func, isa=isa),
        rows=lambda product: (
            lookup_dense.Shape(isa, product.unique_rows, product.geometry.n).padded_rows
        ),
    )


KERNELS = {
    "lookup_avx512": _lookup(lookup_dense.AVX512),
    "lookup_avx2": _lookup(lookup_dense.AVX2),
}

RULES = tuple(
    Rule(
        kernel=kernel,
        operators=("relax.tbn.tiled_dense", "relax.tbn.tiled_conv1d", "relax.tbn.tiled_conv2d"),
        alignments=(Alignment.WHOLE_ROWS,),
        dtypes=("float32",),
        feature=isa.feature,
        min_row_length=8,
    )
    for kernel, isa in (
        ("lookup_avx512", lookup_dense.AVX512),
        ("lookup_avx2", lookup_dense.AVX2),
    )
)
