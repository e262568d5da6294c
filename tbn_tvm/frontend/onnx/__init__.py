"""Import of ONNX models: read, check, fold, and bring to Relax."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tbn_tvm.errors import FormatError

if TYPE_CHECKING:
    import numpy as np
    import tvm
    from onnx import ModelProto

    from tbn_tvm.frontend.onnx.graph import Graph
    from tbn_tvm.frontend.onnx.reading import Initialiser

INPUT_NAMES = "tbn.input_names"
OUTPUT_NAMES = "tbn.output_names"
"""Attributes of ``main``: the model's own names of its inputs and outputs, in order."""


@dataclass(frozen=True)
class OnnxModel:
    """A model that was read, checked and had its constants folded.

    Attributes
    ----------
    graph : Graph
        What is left to compile.
    initialisers : list of Initialiser
        What the file stores.
    """

    graph: Graph
    initialisers: list[Initialiser]


def load_onnx(path: Path) -> OnnxModel:
    """Read a model file and the external data in its folder.

    Raises
    ------
    FormatError
        Where it is no model that can be compiled; the message names the file and the place in it.
    """
    from tbn_tvm.frontend.onnx.reading import parse_model

    try:
        return prepare(parse_model(path), path.parent)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None


def prepare(model: ModelProto, folder: Path | None = None) -> OnnxModel:
    """Everything before TVM: read the tensors, inline functions, check, fold.

    Parameters
    ----------
    model : onnx.ModelProto
        It is not changed.
    folder : Path, optional
        Where its external data lies.
    """
    from tbn_tvm.frontend.onnx.checking import check_graph
    from tbn_tvm.frontend.onnx.contributed import read_contributed
    from tbn_tvm.frontend.onnx.folding import fold_constants
    from tbn_tvm.frontend.onnx.reading import read_graph
    from tbn_tvm.frontend.onnx.tiled_calls import read_tiled_calls

    graph, initialisers = read_graph(model, folder)
    read_tiled_calls(graph)
    read_contributed(graph)
    check_graph(graph)
    fold_constants(graph)
    return OnnxModel(graph.without_dead_code(), initialisers)


def from_onnx(model: OnnxModel) -> tvm.IRModule:
    """Bring a prepared model to Relax; its function calls are ``relax.tbn`` operators already."""
    from tbn_tvm.frontend.onnx.importer import to_relax
    from tbn_tvm.relay_passes import NormaliseIndices, RewriteTiledLayers

    mod = to_relax(model.graph)
    # Before anything folds constants, which would expand the tiled ones.
    mod = NormaliseIndices()(RewriteTiledLayers()(mod))
    names = {
        INPUT_NAMES: [value.name for value in model.graph.inputs],
        OUTPUT_NAMES: [value.name for value in model.graph.outputs],
    }
    mod["main"] = mod["main"].with_attrs(names)
    return mod


def weights_of(model: OnnxModel) -> dict[str, np.ndarray]:
    """Constants of the prepared graph by the name of the initialiser they come from."""
    from tbn_tvm.tiling import TiledTensor

    weights: dict[str, np.ndarray] = {}
    for name, constant in model.graph.constants.items():
        value = constant.value
        source = constant.sources[0] if constant.sources else name
        # What else an initialiser became keeps a name of its own.
        weights.setdefault(
            _shown(source) if _shown(source) not in weights else _shown(f"{source} ({name})"),
            value.tile if isinstance(value, TiledTensor) else value,
        )
    return weights


def _shown(name: str) -> str:
    """A name as one line that ends no comment of generated C."""
    return "".join(c if c.isprintable() else "?" for c in name).replace("*/", "* /")
