"""The whole compiler: every pass, in numbered phases, with a dump after each on request."""

from __future__ import annotations

from pathlib import Path

import tvm
from tvm import relax

from tbn_tvm import relay_passes

Phase = tuple[str, list[tvm.transform.Pass]]
"""A name, which its IR dump takes, and passes."""


def recognise() -> list[tvm.transform.Pass]:
    """Phase 1: constants that are tiled become the tile-reuse operator."""
    return [
        relax.transform.CanonicalizeBindings(),
        relax.transform.FoldConstant(),
        relay_passes.NormaliseIndices(),
        relay_passes.FindTiledWeights(),
        relay_passes.RewriteTiledLayers(),
    ]


def simplify() -> list[tvm.transform.Pass]:
    """Phase 2: what follows a tiled product moves into its scalars."""
    return [
        relay_passes.FuseBias(),
        relay_passes.FoldBatchNorm(),
        relax.transform.DecomposeOpsForInference(),
        relax.transform.CanonicalizeBindings(),
        relax.transform.DeadCodeElimination(),
    ]


def dispatch() -> list[tvm.transform.Pass]:
    """Phase 3, first: operators that TVM's run time has routines for."""
    return [relax.backend.DispatchSampling(), relax.backend.DispatchSortScan()]


def dispatch_bare_metal() -> list[tvm.transform.Pass]:
    """Phase 3, first, for portable C, which has no run time: loops instead of its routines."""
    return [relay_passes.SortByRank(), relax.backend.DispatchSortScan()]


def fuse(target: tvm.target.Target, records=None) -> list[tvm.transform.Pass]:
    """Phase 3, on every target: operators become loops, followers join what they follow."""
    return [
        relay_passes.LowerTiledProducts(target, records),
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relay_passes.FuseSameShapes(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relay_passes.BuildFusedKernels(target),
    ]


def lower(target: tvm.target.Target, records=None) -> list[tvm.transform.Pass]:
    """Phase 3: operators become loops; activations fuse into the kernels that feed them."""
    return [
        *fuse(target, records),
        relay_passes.ScheduleDefaults(threads=target.kind.name == "llvm"),
        relax.transform.DeadCodeElimination(),
    ]


def lower_gpu(target: tvm.target.Target, records=None) -> list[tvm.transform.Pass]:
    """Phase 3 for GPUs: every kernel leaves it bound to blocks and threads."""
    return [
        *fuse(target, records),
        # While reshapes still look like reshapes: scheduled, they are copies like any other.
        relax.transform.RewriteDataflowReshape(),
        relax.transform.DeadCodeElimination(),
        relay_passes.ScheduleGpuDefaults(target),
        relay_passes.LiftWorkspaces(),
    ]


def plan() -> list[tvm.transform.Pass]:
    """Phase 4 for TVM's run time: kernels write where a static plan says."""
    return [
        relax.transform.RewriteDataflowReshape(),
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
    ]


def finish() -> list[tvm.transform.Pass]:
    """Phase 5 for TVM's run time: what its virtual machine executes.

    CUDA graphs are made where the pass context asks for them.
    """
    return [
        relax.transform.RewriteCUDAGraph(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]


def bare_metal() -> list[tvm.transform.Pass]:
    """Phase 4 for portable C: one size, reshapes as views, a straight line of kernel calls."""
    return [
        relax.transform.RewriteDataflowReshape(),
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CanonicalizeBindings(),
        relax.transform.DeadCodeElimination(),
    ]


def frontend_phases() -> list[Phase]:
    """What every target begins with."""
    return [("1_recognise", recognise())]


def host_phases(target: tvm.target.Target, batch: int | None = None, records=None) -> list[Phase]:
    """For TVM's own run time, up to where constants are lifted.

    Parameters
    ----------
    target : tvm.target.Target
        A CPU or a CUDA device.
    batch : int, optional
        What a symbolic batch is fixed to.
    records : tbn_tvm.schedules.records.Records, optional
        Measured configurations of kernels.
    """
    bind = [] if batch is None else [relay_passes.BindBatch(batch)]
    if target.kind.name == "cuda":
        lowered = [*dispatch(), *lower_gpu(target, records)]
    else:
        lowered = [*dispatch(), relay_passes.WindowsToProducts(), *lower(target, records)]
    return [("2_simplify", [*bind, *simplify()]), ("3_lower", lowered)]


def plan_phases() -> list[Phase]:
    """The rest for TVM's own run time, up to the static plan of memory."""
    return [("4_plan", plan())]


def finish_pipeline() -> tvm.transform.Pass:
    """What ``tvm.compile`` is to do with a planned module before it generates code."""
    return tvm.transform.Sequential(finish(), name="5_finish")


def cortex_m_phases(target: tvm.target.Target, records=None) -> list[Phase]:
    """For bare metal; ``tbn_tvm.micro`` does the rest.

    Parameters
    ----------
    target : tvm.target.Target
        From :func:`tbn_tvm.schedules.families.bare_metal`.
    records : tbn_tvm.schedules.records.Records, optional
        Measured choices of kernels.
    """
    return [
        ("2_simplify", [relay_passes.BindBatch(1), *simplify()]),
        ("3_lower", [*dispatch_bare_metal(), *lower(target, records)]),
        ("4_bare_metal", bare_metal()),
    ]


def run(
    mod: tvm.IRModule,
    phases: list[Phase],
    target: tvm.target.Target,
    dump_ir: Path | None = None,
) -> tvm.IRModule:
    """Apply phases in order.

    Parameters
    ----------
    mod : tvm.IRModule
        The imported model.
    phases : list of (str, list of Pass)
        Named phases, from the functions above.
    target : tvm.target.Target
        The target that passes see as current.
    dump_ir : Path, optional
        A folder, made if missing, that gets the TVMScript after each phase as ``<phase>.py``.
    """
    if dump_ir is not None:
        dump_ir.mkdir(parents=True, exist_ok=True)
    with target:
        for name, passes in phases:
            mod = tvm.transform.Sequential(passes, name=name)(mod)
            if dump_ir is not None:
                (dump_ir / f"{name}.py").write_text(mod.script(show_meta=False))
    return mod
