"""Write a model as an ONNX file, and see that it computes the same."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tbn_tvm._tvm import installed
from tbn_tvm.errors import TbnError, ToolError, UsageError
from tbn_tvm.loading import first_line, load_model

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.export import ExportedProgram

    from tbn_tvm.tiling import TiledTensor

DEFAULT_OPSET = 18
"""Of late 2022: the oldest that PyTorch's exporter writes, and one that run times know."""

_LARGEST_FILE = 2**31 - 2**20
"""Bytes of weights beyond which they go to a file of their own: protobuf's limit, less a margin
for the graph."""

_SMALL = 1024
"""Bytes of a weight below which it stays in the model's file."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes
    ----------
    path : Path
        The model.
    data_path : Path or None
        Its weights, where they are in a file of their own.
    opset : int
        Version of ONNX's operators.
    form : str
        ``functions``, ``inline`` or ``dense``.
    nbytes : int
        Bytes written.
    layers : dict of str to TiledTensor
        The tiled layers by name.
    difference : float or None
        Largest difference between ONNX Runtime's outputs and PyTorch's, as a share of the largest
        output; None where they were not compared.
    unchecked : str
        Why not.
    """

    path: Path
    data_path: Path | None
    opset: int
    form: str
    nbytes: int
    layers: dict[str, TiledTensor]
    difference: float | None
    unchecked: str = ""

    def to_dict(self) -> dict:
        """For JSON."""
        return {
            "model": str(self.path),
            "data": None if self.data_path is None else str(self.data_path),
            "opset": self.opset,
            "form": self.form,
            "bytes": self.nbytes,
            "tiled_bytes": sum(tiled.nbytes for tiled in self.layers.values()),
            "layers": [
                {
                    "name": name,
                    "shape": list(tiled.shape),
                    "p": tiled.p,
                    "nbytes": tiled.nbytes,
                }
                for name, tiled in self.layers.items()
            ],
            "difference": self.difference,
            "unchecked": self.unchecked,
        }


def to_onnx(
    model: str | os.PathLike | ExportedProgram,
    path: str | os.PathLike,
    *,
    opset: int = DEFAULT_OPSET,
    form: str = "functions",
    external_data: bool = False,
    check: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Exported:
    """Write a model as ONNX.

    The same model gives the same bytes. A file that exists is replaced only once the new one is
    whole and checked.

    Parameters
    ----------
    model : str, path or ExportedProgram
        As for :func:`tbn_tvm.load_model`.
    path : path
        The file, by convention ``.onnx``.
    opset : int
        Version of ONNX's operators: 17 up to what the installed PyTorch and onnxscript write.
    form : {"functions", "inline", "dense"}
        Tiled layers as functions of our domain that hold bits and alphas and whose bodies are
        standard ONNX; or those bodies in the graph itself, on the same bits; or float weights.
    external_data : bool
        Put weights into ``<path>.data`` beside the model, as happens anyway past 2 GB.
    check : bool
        Compare with PyTorch in ONNX Runtime, if that is installed, on random inputs.
    progress : callable, optional
        Called with a word on each step.

    Raises
    ------
    UsageError
        For an opset or a form that cannot be written.
    ToolError
        Where the packages for ONNX are missing.
    TbnError
        Where the model cannot be translated, or outputs differ.
    """
    from tbn_tvm.export.forms import FORMS

    if form not in FORMS:
        raise UsageError(f"form {form!r}: expected one of {', '.join(FORMS)}")
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path}: is a folder, expected a file's name")
    missing = [name for name in ("onnx", "onnxscript") if installed(name) is None]
    if missing:
        raise ToolError(f'{missing[0]} is not installed; run: pip install "tbn-tvm[onnx]"')
    tell = progress or (lambda _text: None)
    from tbn_tvm.export import forms
    from tbn_tvm.export.graph import build_model
    from tbn_tvm.frontend.onnx import OnnxModel

    program = load_model(model) if isinstance(model, (str, os.PathLike)) else model
    if isinstance(program, OnnxModel):
        raise UsageError(f"{os.fspath(model)}: is ONNX already; expected a PyTorch program")
    tell("translating")
    proto = build_model(program, opset)
    layers = {name: layer.weight for name, layer in forms.layers_of(proto)}
    if form != "functions":
        proto = forms.inlined(proto) if form == "inline" else forms.dense(proto)
    external = external_data or _weight_bytes(proto) > _LARGEST_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{path.name}.", suffix=".partial", dir=path.parent))
    try:
        partial = folder / path.name
        data = folder / f"{path.name}.data"
        _save(proto, partial, data if external else None)
        tell("checking")
        _check_model(partial)
        difference, unchecked = _compare(program, partial) if check else (None, "not asked for")
        # The data first: a model without its data is no model.
        written = [file for file in (data, partial) if file.exists()]
        nbytes = sum(file.stat().st_size for file in written)
        for file in written:
            file.replace(path.parent / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    data_path = path.parent / data.name if data in written else None
    return Exported(path, data_path, opset, form, nbytes, layers, difference, unchecked)


def _weight_bytes(model: ModelProto) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def _save(model: ModelProto, path: Path, data: Path | None) -> None:
    import onnx

    if data is None:
        path.write_bytes(model.SerializeToString(deterministic=True))
        return
    # Small constants stay: shape inference reads axes and shapes from the model alone.
    onnx.save_model(
        model, path, save_as_external_data=True, location=data.name, size_threshold=_SMALL
    )


def _check_model(path: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker and shape inference raise kinds of their own
        raise TbnError(f"ONNX's checker refuses the model: {first_line(error)}") from None


def _compare(program: ExportedProgram, path: Path) -> tuple[float | None, str]:
    from tbn_tvm.export.verify import NotRunnable, largest_difference

    try:
        return largest_difference(program, path), ""
    except NotRunnable as reason:
        return None, str(reason)
