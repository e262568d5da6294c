"""Kernels for CPUs and the rules that choose among them."""

from tbn_tvm.schedules.cpu.lookup import AVX2, AVX512
from tbn_tvm.schedules.cpu.lookup_dense import LookupDense
from tbn_tvm.schedules.cpu.mask_dense import MaskDense
from tbn_tvm.schedules.cpu.panel_dense import PanelDense
from tbn_tvm.schedules.rules import DENSE, Rule

KERNELS = {
    kernel.name: kernel
    for kernel in (LookupDense(AVX512), LookupDense(AVX2), PanelDense(), MaskDense())
}

_DTYPES = ("float32", "float16")

RULES = (
    # A vector of rows pays from half of its lanes on; fewer rows are faster one by one.
    Rule("masks", (DENSE,), dtypes=_DTYPES, max_unique_rows=6),
    *(
        Rule(
            f"lookup_{isa.feature}",
            (DENSE,),
            dtypes=_DTYPES,
            feature=isa.feature,
            min_row_length=8,
            whole_rows=True,
        )
        for isa in (AVX512, AVX2)
    ),
    Rule("panel", (DENSE,), dtypes=_DTYPES, whole_rows=True),
    Rule("masks", (DENSE,), dtypes=_DTYPES),
)
