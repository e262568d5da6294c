"""From a loaded model to the graph IR, its tiled layers recognised."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tbn_tvm._tvm import told_as_ours
from tbn_tvm.errors import TbnError
from tbn_tvm.loading import c_identifier, default_name, load_model, quiet
from tbn_tvm.signature import Signature, TensorSpec

if TYPE_CHECKING:
    import tvm
    from torch.export import ExportedProgram

    from tbn_tvm.frontend.onnx import OnnxModel


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
        What was imported, where that is a PyTorch program.
    onnx : OnnxModel, optional
        What was imported, where that is an ONNX model.
    """

    name: str
    mod: tvm.IRModule
    signature: Signature
    layers: list = field(default_factory=list)
    program: ExportedProgram | None = None
    onnx: OnnxModel | None = None


def import_model(
    model: str | os.PathLike | ExportedProgram | OnnxModel,
    *,
    name: str | None = None,
    dump_ir: str | os.PathLike | None = None,
) -> Imported:
    """Bring a model to the graph IR and recognise its tiled layers.

    Parameters
    ----------
    model : str, path, ExportedProgram or OnnxModel
        See :func:`tbn_tvm.loading.load_model`.
    name : str, optional
        The model's name; from the file's by default.
    dump_ir : path, optional
        A folder for the IR after each phase.
    """
    import tvm

    from tbn_tvm import pipeline
    from tbn_tvm.frontend.onnx import OnnxModel, from_onnx, weights_of
    from tbn_tvm.inspect import describe_layers

    if name is None:
        name = default_name(model) if isinstance(model, (str, os.PathLike)) else "model"
    source = load_model(model) if isinstance(model, (str, os.PathLike)) else model
    is_onnx = isinstance(source, OnnxModel)
    with quiet():
        mod = from_onnx(source) if is_onnx else _from_torch(source)
    mod = _name_batch(mod)
    with told_as_ours("the model cannot be compiled"):
        mod = pipeline.run(
            mod,
            pipeline.frontend_phases(),
            tvm.target.Target("llvm"),
            None if dump_ir is None else Path(dump_ir),
        )
    layers = describe_layers(mod, weights_of(source) if is_onnx else _arrays(source))
    kind = {"onnx": source} if is_onnx else {"program": source}
    return Imported(c_identifier(name), mod, signature_of(mod), layers, **kind)


def _from_torch(program: ExportedProgram) -> tvm.IRModule:
    from tbn_tvm.frontend.torch import from_exported_program

    with told_as_ours("the model cannot be imported into TVM"):
        return from_exported_program(program)


def signature_of(mod: tvm.IRModule) -> Signature:
    """What ``main`` takes and returns, by the model's own names where it has such."""
    from tvm import relax

    from tbn_tvm.frontend.onnx import INPUT_NAMES, OUTPUT_NAMES

    main = mod["main"]
    result = main.ret_ty
    fields = list(result.fields) if isinstance(result, relax.TupleType) else [result]
    given, returned = (_attribute(main, key) for key in (INPUT_NAMES, OUTPUT_NAMES))
    if given is None:
        given = [param.name for param in main.params]
    if returned is None:
        returned = ["output"] if len(fields) == 1 else [f"output_{i}" for i in range(len(fields))]
    return Signature(
        tuple(_spec(n, param.ty) for n, param in zip(given, main.params, strict=True)),
        tuple(_spec(n, t) for n, t in zip(returned, fields, strict=True)),
    )


def _attribute(function, key: str) -> list[str] | None:
    held = function.attrs[key] if function.attrs and key in function.attrs else None
    return None if held is None else [str(name) for name in held]


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


def _arrays(program: ExportedProgram) -> dict[str, np.ndarray]:
    """The program's weights by qualified name, where NumPy has their dtype."""
    import torch

    known = (torch.uint8, torch.float16, torch.float32, torch.float64)
    return {
        name: value.detach().cpu().numpy()
        for name, value in program.state_dict.items()
        if isinstance(value, torch.Tensor) and value.dtype in known
    }
