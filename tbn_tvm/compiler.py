"""From a model to something that runs: load, recognise, lower, build."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tbn_tvm import __version__, cuda
from tbn_tvm._tvm import FFI_VERSION, installed
from tbn_tvm.errors import TbnError, ToolError, UsageError
from tbn_tvm.signature import Signature, TensorSpec

if TYPE_CHECKING:
    import tvm
    from torch.export import ExportedProgram

    from tbn_tvm.micro.project import Project
    from tbn_tvm.micro.quantization import Calibration
    from tbn_tvm.runtime import Artifact


# A generated <name>.h or <name>_run of these names would meet the C library's or the language's.
_C_WORDS = """
    assert complex ctype errno fenv float inttypes iso646 limits locale math setjmp signal stdarg
    stdbool stddef stdint stdio stdlib string tgmath time wchar wctype auto break case char const
    continue default do double else enum extern for goto if inline int long main register restrict
    return short signed sizeof static struct switch typedef union unsigned void volatile while
"""
_TAKEN = frozenset(_C_WORDS.split())


@dataclass(frozen=True)
class Imported:
    """A model in the graph IR, tiled layers recognised.

    Attributes
    ----------
    name : str
        A C identifier.
    mod : tvm.IRModule
        After the recognising passes.
    signature : Signature
        Inputs and outputs.
    layers : list of LayerInfo
        A row a layer.
    program : ExportedProgram, optional
        What was imported.
    """

    name: str
    mod: tvm.IRModule
    signature: Signature
    layers: list = field(default_factory=list)
    program: ExportedProgram | None = None


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
            return replace(model, mod=mod, signature=_signature_of(mod))
        if self.max_batch is not None:
            mod = model.mod.clone()
            bound = {"batch": self.max_batch}
            mod["main"] = mod["main"].with_attr("tir_var_upper_bound", bound)
            return replace(model, mod=mod)
        return model


def load_model(spec: str | os.PathLike) -> ExportedProgram:
    """Load what the command line calls MODEL.

    Parameters
    ----------
    spec : str or path
        A ``.pt2`` file of ``torch.export.save``; ``package.module:factory``; or ``models:NAME``, an
        architecture of :mod:`tbn_tvm.models.registry`, untrained, with p = 4 and a free batch (a
        module ``models`` of the user's own goes before). The factory takes no arguments and returns
        an exported program, or a pair of a module and a tuple of example inputs, or a triple that
        adds ``dynamic_shapes`` for ``torch.export.export``.

    Raises
    ------
    TbnError
        Where it is missing or no model.
    """
    text = os.fspath(spec)
    if not os.path.exists(text) and ":" in text and not text.endswith(".pt2"):
        return _from_registry(text) if _names_an_architecture(text) else _from_factory(text)
    path = Path(text)
    if not path.exists():
        raise TbnError(f"{path}: no such file; expected a .pt2 file or package.module:factory")
    if path.is_dir():
        raise TbnError(f"{path}: is a folder; expected a .pt2 file or package.module:factory")
    import torch

    import tbn_tvm.nn.ops  # noqa: F401  (the operators a saved program refers to)

    try:
        # From a stream, which unlike a path may have any suffix.
        with _quiet(), path.open("rb") as file:
            return torch.export.load(file)
    except Exception as error:  # torch raises many kinds on input that is no program
        # Torch refers to its log, which nobody sees.
        reason = _first_line(error).partition(" Please check the warnings")[0]
        raise TbnError(
            f"{path}: not a program saved by torch.export.save, or damaged ({reason}); export the "
            "model with torch.export.export and save that"
        ) from None


def import_model(
    model: str | os.PathLike | ExportedProgram,
    *,
    name: str | None = None,
    dump_ir: str | os.PathLike | None = None,
) -> Imported:
    """Bring a model to the graph IR and recognise its tiled layers.

    Parameters
    ----------
    model : str, path or ExportedProgram
        See :func:`load_model`.
    name : str, optional
        The model's name; from the file's by default.
    dump_ir : path, optional
        A folder for the IR after each phase.
    """
    import tvm

    from tbn_tvm import pipeline
    from tbn_tvm.frontend.torch import from_exported_program
    from tbn_tvm.inspect import describe_layers

    if name is None:
        name = default_name(model) if isinstance(model, (str, os.PathLike)) else "model"
    program = load_model(model) if isinstance(model, (str, os.PathLike)) else model
    try:
        with _quiet():
            mod = from_exported_program(program)
    except TbnError:
        raise
    except Exception as error:  # the importer raises many kinds for what it does not know
        raise TbnError(f"the model cannot be imported into TVM: {_first_line(error)}") from None
    mod = _name_batch(mod)
    try:
        mod = pipeline.run(
            mod, pipeline.frontend_phases(), tvm.target.Target("llvm"), _as_path(dump_ir)
        )
    except ValueError as error:  # a pass refuses the model, and says why
        raise TbnError(f"the model cannot be compiled: {_first_line(error)}") from None
    layers = describe_layers(mod, _arrays(program))
    return Imported(c_identifier(name), mod, _signature_of(mod), layers, program)


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
        model, resolved, dump_ir=_as_path(dump_ir), calibration=calibration, io=io
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
        raise UsageError(f"TVM refuses the target {target}: {_first_line(error)}") from None
    if target["kind"] == "cuda":
        return target
    triple = target.get("mtriple") or codegen.llvm_get_system_triple()
    cpu = target.get("mcpu") or "generic"
    # Of an unknown CPU LLVM makes a generic one, and only logs it.
    if not codegen.llvm_is_valid_cpu(cpu, triple):
        raise UsageError(f"LLVM does not know mcpu {cpu!r} of mtriple {triple!r}")
    return target


def _compile_for_tvm(
    model: Imported, target: dict, options: Options, dump_ir: Path | None, records, tell
) -> Artifact:
    from tbn_tvm import pipeline
    from tbn_tvm.memory import plan_memory
    from tbn_tvm.relay_passes.lift_constants import lift_constants
    from tbn_tvm.runtime import Artifact
    from tbn_tvm.schedules.records import Records
    from tbn_tvm.schedules.records.report import used_kernels

    model = options.applied(model)
    tvm_target = _tvm_target(target)
    phases = pipeline.host_phases(tvm_target, records=Records.load(tvm_target, records))
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
    tell("building")
    with cuda.taking_source() as sources:
        library = _build(mod, tvm_target, options)
    return Artifact(
        name=model.name,
        target=target,
        signature=model.signature,
        library=library,
        constants=tuple(constants),
        layers=[layer.to_dict() for layer in model.layers],
        versions=versions(),
        memory=memory.to_dict(),
        max_batch=options.max_batch,
        device_code={
            reference: cuda.compile_source(source, target["arch"])
            for reference, source in sources.items()
        },
        source="\n".join(sources.values()),
        kernels=kernels,
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
    with tvm.transform.PassContext(config=config):
        executable = tvm.compile(mod, target=target, relax_pipeline=pipeline.finish_pipeline())
    with tempfile.TemporaryDirectory(prefix="tbn_tvm_") as folder:
        path = Path(folder) / "library.so"
        try:
            executable.export_library(str(path))
        except Exception as error:
            raise ToolError(
                f"the library could not be linked: {_first_line(error)}; a C++ compiler is needed "
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


def default_name(model: str | os.PathLike) -> str:
    """The name a file or factory gives its model."""
    text = os.fspath(model)
    if ":" in text and not os.path.exists(text):
        return c_identifier(text.rpartition(":")[2])
    return c_identifier(Path(text).stem)


def c_identifier(text: str) -> str:
    """The nearest lower-case C identifier."""
    cleaned = "".join(c if c.isascii() and c.isalnum() else "_" for c in text.lower()).strip("_")
    if not cleaned or cleaned[0].isdigit() or cleaned in _TAKEN or cleaned.startswith("tbn_"):
        cleaned = f"model_{cleaned}".rstrip("_")
    return cleaned


def _names_an_architecture(spec: str) -> bool:
    """Whether ``models:`` is the registry: a user's own module of that name must stay reachable."""
    if not spec.startswith("models:"):
        return False
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.util.find_spec("models") is None
    finally:
        sys.path.remove(os.getcwd())


def _from_registry(spec: str) -> ExportedProgram:
    from tbn_tvm.models.registry import find_model

    model = find_model(spec.removeprefix("models:"))
    with _quiet():
        return model.program()


def _from_factory(spec: str) -> ExportedProgram:
    import torch

    module_name, _, attribute = spec.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise UsageError(f"{spec!r}: no such file, and not of the form package.module:factory")
    sys.path.insert(0, os.getcwd())
    try:
        factory = getattr(importlib.import_module(module_name), attribute, None)
    except ModuleNotFoundError as error:
        raise TbnError(f"{spec}: {error}; run from the folder it is in, or install it") from None
    except (Exception, SystemExit) as error:
        raise TbnError(f"{spec}: importing it failed: {_first_line(error)}") from error
    finally:
        sys.path.remove(os.getcwd())
    if not callable(factory):
        raise TbnError(f"{spec}: module {module_name} has no callable {attribute!r}")
    try:
        made = factory()
    except (Exception, SystemExit) as error:
        raise TbnError(f"{spec}: the factory failed: {_first_line(error)}") from error
    if isinstance(made, torch.export.ExportedProgram):
        return made
    if (
        isinstance(made, tuple)
        and len(made) in (2, 3)
        and isinstance(made[0], torch.nn.Module)
        and isinstance(made[1], tuple)
    ):
        from tbn_tvm.nn import freeze

        module = freeze(made[0])
        try:
            with _quiet():
                return torch.export.export(
                    module, made[1], dynamic_shapes=made[2] if len(made) == 3 else None
                )
        except Exception as error:
            raise TbnError(f"{spec}: torch.export refused it: {_first_line(error)}") from None
    raise TbnError(
        f"{spec}: the factory returned {type(made).__name__}: expected an ExportedProgram, or "
        "(module, example_inputs[, dynamic_shapes])"
    )


def _signature_of(mod: tvm.IRModule) -> Signature:
    from tvm import relax

    main = mod["main"]
    inputs = tuple(_spec(param.name, param.ty) for param in main.params)
    result = main.ret_ty
    fields = list(result.fields) if isinstance(result, relax.TupleType) else [result]
    names = ["output"] if len(fields) == 1 else [f"output_{i}" for i in range(len(fields))]
    return Signature(inputs, tuple(_spec(n, t) for n, t in zip(names, fields, strict=True)))


def _spec(name: str, tensor) -> TensorSpec:
    from tvm import relax
    from tvm import tirx as tir

    if not isinstance(tensor, relax.TensorType) or tensor.shape is None:
        raise TbnError(f"{name!r} is {tensor}: expected a tensor of known rank")
    shape = tuple(int(e) if isinstance(e, tir.IntImm) else str(e) for e in tensor.shape.values)
    return TensorSpec(name, shape, str(tensor.dtype))


def _name_batch(mod: tvm.IRModule) -> tvm.IRModule:
    """Call the one symbolic dimension of a model ``batch`` where it is the first axis of its
    inputs: exporters name it by a number."""
    from tvm import relax
    from tvm import tirx as tir

    symbols = {
        extent
        for param in mod["main"].params
        if isinstance(param.ty, relax.TensorType) and param.ty.shape is not None
        for extent in param.ty.shape.values
        if isinstance(extent, tir.Var)
    }
    first_axes = {
        param.ty.shape.values[0]
        for param in mod["main"].params
        if isinstance(param.ty, relax.TensorType)
        and param.ty.shape is not None
        and len(param.ty.shape.values)
    }
    if len(symbols) != 1 or not symbols <= first_axes:
        return mod
    (symbol,) = symbols
    return relax.transform.BindSymbolicVars({symbol: tir.Var("batch", "int64")}, "main")(mod)


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


def _arrays(program: ExportedProgram) -> dict[str, np.ndarray]:
    """The program's weights by qualified name, where NumPy has their dtype."""
    import torch

    known = (torch.uint8, torch.float16, torch.float32, torch.float64)
    return {
        name: value.detach().cpu().numpy()
        for name, value in program.state_dict.items()
        if isinstance(value, torch.Tensor) and value.dtype in known
    }


def _as_path(path: str | os.PathLike | None) -> Path | None:
    return None if path is None else Path(path)


def _first_line(error: BaseException) -> str:
    """The part of an exception that a reader needs."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def _quiet():
    """Silence what importers warn, log and print about their own insides; exceptions pass."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
