"""From a model to something that runs: lower and build."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tbn_tvm import __version__, cuda
from tbn_tvm._tvm import FFI_VERSION, installed, told_as_ours
from tbn_tvm.errors import ToolError, UsageError
from tbn_tvm.importing import Imported, import_model, signature_of
from tbn_tvm.loading import c_identifier, default_name, first_line, load_model

if TYPE_CHECKING:
    import tvm
    from torch.export import ExportedProgram

    from tbn_tvm.memory import MemoryPlan
    from tbn_tvm.micro.project import Project
    from tbn_tvm.micro.quantization import Calibration
    from tbn_tvm.runtime import Artifact

__all__ = [
    "Imported",
    "Options",
    "c_identifier",
    "compile",
    "default_name",
    "import_model",
    "load_model",
    "resolve_target",
    "versions",
]


@dataclass(frozen=True)
class Options:
    """How to compile for TVM's run time; parameters as for :func:`compile`."""

    batch: int | None = None
    max_batch: int | None = None
    cuda_graph: bool = False

    def check(self, target) -> None:
        """Refuse what contradicts itself or the target, before a model is read.

        Parameters
        ----------
        target : dict or Board
            What :func:`resolve_target` returned.

        Raises
        ------
        UsageError
            With what to change.
        """
        for flag, size in (("--batch", self.batch), ("--max-batch", self.max_batch)):
            if size is None:
                continue
            if size < 1:
                raise UsageError(f"{flag} {size}: expected at least 1")
            if not isinstance(target, dict):
                raise UsageError(f"{flag}: a board runs one sample after the other, of any number")
        if self.batch is not None and self.max_batch is not None:
            raise UsageError("--batch fixes the batch and --max-batch keeps it free: give one")
        if not self.cuda_graph:
            return
        if not isinstance(target, dict) or target["kind"] != "cuda":
            raise UsageError("--cuda-graph: only a cuda target has CUDA graphs")
        if self.max_batch is not None:
            raise UsageError("--cuda-graph needs fixed shapes: give --batch, not --max-batch")

    def applied(self, model: Imported) -> Imported:
        """The model with its batch fixed or bounded as asked for.

        Raises
        ------
        UsageError
            Where it has no symbolic batch, or other symbolic dimensions as well.
        """
        free = sorted({e for spec in model.signature.inputs for e in spec.shape if str(e) == e})
        asked = self.batch if self.batch is not None else self.max_batch
        if asked is not None and free != ["batch"]:
            shapes = ", ".join(map(str, model.signature.inputs))
            raise UsageError(
                f"{'--batch' if self.batch is not None else '--max-batch'} {asked}: the model's "
                f"inputs are {shapes}: expected one symbolic dimension, first in each; name it in "
                "dynamic_shapes of torch.export.export"
            )
        if self.cuda_graph and free and self.batch is None:
            raise UsageError(
                f"--cuda-graph needs fixed shapes, and {', '.join(free)} is free: fix it with "
                "--batch N"
            )
        if self.batch is not None:
            from tbn_tvm.relay_passes import BindBatch

            mod = BindBatch(self.batch)(model.mod)
            return replace(model, mod=mod, signature=signature_of(mod))
        if self.max_batch is not None:
            mod = model.mod.clone()
            bound = {"batch": self.max_batch}
            mod["main"] = mod["main"].with_attr("tir_var_upper_bound", bound)
            return replace(model, mod=mod)
        return model


def compile(
    model: str | os.PathLike | ExportedProgram | Imported,
    target: str | dict = "llvm",
    *,
    name: str | None = None,
    dump_ir: str | os.PathLike | None = None,
    progress: Callable[[str], None] | None = None,
    batch: int | None = None,
    max_batch: int | None = None,
    cuda_graph: bool = False,
    calibration: Calibration | None = None,
    records: str | os.PathLike | None = None,
    io: str = "arena",
) -> Artifact | Project:
    """Compile a model.

    Parameters
    ----------
    model : str, path, ExportedProgram or Imported
        See :func:`load_model`.
    target : str or dict
        ``llvm`` (any CPU of this architecture), ``host`` (this machine's CPU), ``cuda`` (the GPU
        present, else sm_80) or ``cuda=sm_90``, a TVM target as a dict or as JSON, or a board's
        name (see ``tbn-tvm micro boards``). Compiling for cuda takes nvcc, and no GPU.
    name : str, optional
        The model's name, from which generated C takes its identifiers.
    dump_ir : path, optional
        A folder for the IR after each phase.
    progress : callable, optional
        Called with a word on each step.
    batch : int, optional
        Fix the model's symbolic batch to this size.
    max_batch : int, optional
        Keep it symbolic up to this size, for which memory is planned ahead.
    cuda_graph : bool
        Launch kernels as a CUDA graph; only for cuda and fixed shapes.
    calibration : tbn_tvm.micro.quantization.Calibration, optional
        Samples from which int8 activations get their scales; only for boards.
    records : path, optional
        A folder of ``tbn-tvm tune``: its measured configurations of kernels go before the shipped
        ones, which go before the kernels' rules.
    io : str
        Where inputs and outputs lie on a board: ``arena``, shared with what else is needed, or
        ``static``, where inputs survive a run.

    Returns
    -------
    Artifact or tbn_tvm.micro.Project
        A project for a board, an artifact otherwise.
    """
    tell = progress or (lambda _text: None)
    resolved = resolve_target(target)
    options = Options(batch, max_batch, cuda_graph)
    options.check(resolved)
    if isinstance(resolved, dict) and io != "arena":
        raise UsageError(f"io is for boards, not for {resolved['kind']}")
    if isinstance(resolved, dict) and calibration is not None:
        raise UsageError(f"int8 activations are for boards, not for {resolved['kind']}")
    if isinstance(resolved, dict) and resolved["kind"] == "cuda":
        cuda.find_nvcc()  # told now rather than when everything before it is done
    if not isinstance(model, Imported):
        tell("importing")
        model = import_model(model, name=name, dump_ir=dump_ir)
    tell("lowering")
    if isinstance(resolved, dict):
        return _compile_for_tvm(model, resolved, options, _as_path(dump_ir), records, tell)
    from tbn_tvm.micro.project import create_project

    return create_project(
        model,
        resolved,
        dump_ir=_as_path(dump_ir),
        calibration=calibration,
        io=io,
        records=records,
    )


def resolve_target(target: str | dict):
    """A TVM target as a dict, or a :class:`tbn_tvm.targets.Board`.

    Raises
    ------
    UsageError
        For a name that is neither.
    """
    from tbn_tvm.targets import board_names, load_board

    if isinstance(target, str):
        if target == "llvm":
            return {"kind": "llvm"}
        if target == "host":
            return _this_cpu()
        if target == "cuda" or target.startswith("cuda="):
            return _cuda_target(target.removeprefix("cuda=") if target != "cuda" else None)
        if target in board_names():
            return load_board(target)
        if target.lstrip().startswith("{"):
            try:
                target = json.loads(target)
            except ValueError as error:
                raise UsageError(f"target {target!r} is not valid JSON: {error}") from None
        else:
            known = ", ".join(["llvm", "host", "cuda", "cuda=sm_90", *board_names()])
            raise UsageError(
                f"unknown target {target!r}: expected {known}, or a TVM target as JSON"
            )
    if target.get("kind") not in ("llvm", "cuda"):
        raise UsageError(
            f"target kind {target.get('kind')!r}: expected llvm, cuda or a board's name"
        )
    from tvm.target import codegen

    if target["kind"] == "cuda":
        # An architecture spelt out in a description is taken as it is.
        arch = {"arch": cuda.check_arch(str(target["arch"]))} if "arch" in target else {}
        target = {**_cuda_target(None), **target, **arch}
    try:
        _tvm_target(target)
    except Exception as error:
        raise UsageError(f"TVM refuses the target {target}: {first_line(error)}") from None
    if target["kind"] == "cuda":
        return target
    triple = target.get("mtriple") or codegen.llvm_get_system_triple()
    cpu = target.get("mcpu") or "generic"
    # Of an unknown CPU LLVM makes a generic one, and only logs it.
    if not codegen.llvm_is_valid_cpu(cpu, triple):
        raise UsageError(f"LLVM does not know mcpu {cpu!r} of mtriple {triple!r}")
    return target


def plan(model: Imported, target: dict, batch: int | None = None) -> MemoryPlan:
    """The memory that a model is planned to need on a CPU or GPU, without building it.

    Parameters
    ----------
    model : Imported
        Of :func:`import_model`.
    target : dict
        Of :func:`resolve_target`; cuda needs neither nvcc nor a GPU here.
    batch : int, optional
        What a symbolic batch is fixed to.
    """
    return _planned(model, target, Options(batch), None, None).memory


@dataclass(frozen=True)
class _Planned:
    """A lowered module with its memory laid out, and what goes beside it."""

    model: Imported
    mod: tvm.IRModule
    constants: list
    memory: MemoryPlan
    kernels: list


def _planned(
    model: Imported, target: dict, options: Options, dump_ir: Path | None, records
) -> _Planned:
    from tbn_tvm import pipeline
    from tbn_tvm.memory import plan_memory
    from tbn_tvm.relay_passes.lift_constants import lift_constants
    from tbn_tvm.schedules.records import Records
    from tbn_tvm.schedules.records.report import used_kernels

    model = options.applied(model)
    tvm_target = _tvm_target(target)
    phases = pipeline.host_phases(tvm_target, records=Records.load(tvm_target, records))
    with told_as_ours("TVM cannot compile the model"):
        mod = pipeline.run(model.mod, phases, tvm_target, dump_ir)
        kernels = used_kernels(mod)
        mod, constants = lift_constants(mod)
        mod = pipeline.run(mod, pipeline.plan_phases(), tvm_target, dump_ir)
    memory = plan_memory(
        mod,
        constants,
        model.signature,
        options.batch or options.max_batch or 1,
        keep_all=options.cuda_graph,
    )
    return _Planned(model, mod, constants, memory, kernels)


def _compile_for_tvm(
    model: Imported, target: dict, options: Options, dump_ir: Path | None, records, tell
) -> Artifact:
    from tbn_tvm.runtime import Artifact

    planned = _planned(model, target, options, dump_ir, records)
    model = planned.model
    tell("building")
    with cuda.taking_source() as sources:
        library = _build(planned.mod, _tvm_target(target), options)
    return Artifact(
        name=model.name,
        target=target,
        signature=model.signature,
        library=library,
        constants=tuple(planned.constants),
        layers=[layer.to_dict() for layer in model.layers],
        versions=versions(),
        memory=planned.memory.to_dict(),
        max_batch=options.max_batch,
        device_code={
            reference: cuda.compile_source(source, target["arch"])
            for reference, source in sources.items()
        },
        source="\n".join(sources.values()),
        kernels=planned.kernels,
    )


def _tvm_target(target: dict) -> tvm.target.Target:
    import tvm

    if target["kind"] == "cuda" and "host" not in target:
        return tvm.target.Target(target, host={"kind": "llvm"})
    return tvm.target.Target(target)


def _build(mod: tvm.IRModule, target: tvm.target.Target, options: Options) -> bytes:
    """The shared library of a planned module."""
    import tvm

    from tbn_tvm import pipeline

    config = {"relax.backend.use_cuda_graph": options.cuda_graph}
    with tvm.transform.PassContext(config=config), told_as_ours("TVM cannot compile the model"):
        executable = tvm.compile(mod, target=target, relax_pipeline=pipeline.finish_pipeline())
    with tempfile.TemporaryDirectory(prefix="tbn_tvm_") as folder:
        path = Path(folder) / "library.so"
        try:
            executable.export_library(str(path))
        except Exception as error:
            raise ToolError(
                f"the library could not be linked: {first_line(error)}; a C++ compiler is needed "
                "(Debian: apt-get install g++)"
            ) from None
        return path.read_bytes()


def versions() -> dict:
    """What compiled a model."""
    return {
        "tbn_tvm": __version__,
        "tvm": installed("apache-tvm"),
        "tvm_ffi": installed("apache-tvm-ffi") or FFI_VERSION,
    }


def _cuda_target(arch: str | None) -> dict:
    """The target of an architecture; where none is given, of the device present, or the default."""
    if arch is None:
        arch = cuda.device_arch() or cuda.DEFAULT_ARCH
    if arch == "sm_90":
        # Hopper is the only chip of this number, and its best instructions go by the suffix.
        arch = "sm_90a"
    return {"kind": "cuda", "arch": cuda.check_arch(str(arch))}


def _this_cpu() -> dict:
    import tvm
    from tvm.target import codegen

    triple = codegen.llvm_get_system_triple()
    host = {"kind": "llvm", "mtriple": triple, "mcpu": codegen.llvm_get_system_cpu()}
    tvm.target.Target(host)
    return host


def _as_path(path: str | os.PathLike | None) -> Path | None:
    return None if path is None else Path(path)
