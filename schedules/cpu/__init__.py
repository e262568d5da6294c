"""Kernels for CPUs and the rules that choose among them."""

from tbn_tvm.schedules.cpu.conv import MAX_PHASES
from tbn_tvm.schedules.cpu.direct_conv import DirectConv
from tbn_tvm.schedules.cpu.lookup import AVX2, AVX512
from tbn_tvm.schedules.cpu.lookup_conv import LookupConv
from tbn_tvm.schedules.cpu.lookup_dense import LookupDense
from tbn_tvm.schedules.cpu.mask_dense import MaskDense
from tbn_tvm.schedules.cpu.panel_dense import PanelDense
from tbn_tvm.schedules.rules import DENSE, Rule

KERNELS = {
    kernel.name: kernel
    for kernel in (
        LookupDense(AVX512),
        LookupDense(AVX2),
        PanelDense(),
        MaskDense(),
        LookupConv(AVX512),
        LookupConv(AVX2),
        DirectConv(),
    )
}

_CONVS = ("relax.tbn.tiled_conv1d", "relax.tbn.tiled_conv2d")
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
    *(
        Rule(
            f"lookup_conv_{isa.feature}",
            _CONVS,
            dtypes=_DTYPES,
            feature=isa.feature,
            min_unique_rows=7,
            max_groups=None,
            max_segments=1,
            known_extents=True,
            max_phases=MAX_PHASES,
        )
        for isa in (AVX512, AVX2)
    ),
    # Each segment costs a filter of its own.
    Rule(
        "direct_conv",
        _CONVS,
        dtypes=_DTYPES,
        max_groups=None,
        max_segments=8,
        known_extents=True,
        max_phases=MAX_PHASES,
    ),
)
