"""From a file to a graph: what a model may be is decided here, before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto, NodeProto, ValueInfoProto, helper

from tbn_tvm.errors import FormatError
from tbn_tvm.export.functions import CONV, DOMAIN, LINEAR, VERSION
from tbn_tvm.frontend.onnx import contributed
from tbn_tvm.frontend.onnx.branches import check_nodes, hoist_constants
from tbn_tvm.frontend.onnx.fresh_names import FreshNames
from tbn_tvm.frontend.onnx.functions import inline_functions
from tbn_tvm.frontend.onnx.graph import (
    STANDARD,
    Constant,
    Graph,
    describe,
    dtype_name,
    nodes_inside,
    tensor_type,
)
from tbn_tvm.frontend.onnx.limits import (
    FIRST_OPSET,
    MAX_ELEMENTS,
    MAX_FILE_BYTES,
    MAX_RANK,
)
from tbn_tvm.frontend.onnx.symbols import name_free_axes, without_free_axes
from tbn_tvm.frontend.onnx.tensors import DTYPES, TensorReader


@dataclass(frozen=True)
class Initialiser:
    """A tensor as the file stores it, for reports.

    Attributes
    ----------
    name : str
        Name of the initialiser.
    shape : tuple of int
        Its shape.
    dtype : str
        Its element type.
    nbytes : int
        Bytes in memory.
    default : bool
        Whether it is the default of an input, which callers could otherwise replace.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    default: bool


def parse_model(path: Path) -> ModelProto:
    """Parse a file, external data left where it is.

    Raises
    ------
    FormatError
        Where it is no ONNX model.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise FormatError(f"{size:,} bytes: expected at most {MAX_FILE_BYTES:,}")
    model = ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, ValueError, RecursionError) as error:
        raise FormatError(f"not an ONNX model, or damaged ({error})") from None
    if not model.HasField("graph") or not model.ir_version:
        raise FormatError("not an ONNX model: no graph or no version of the format")
    return model


def read_graph(model: ModelProto, folder: Path | None) -> tuple[Graph, list[Initialiser]]:
    """The graph of a parsed model, its functions inlined but those of tiled layers.

    Parameters
    ----------
    model : onnx.ModelProto
        Any model; it is not changed.
    folder : Path, optional
        Where external data lies.

    Returns
    -------
    Graph
        Constants as arrays.
    list of Initialiser
        The file's initialisers, and weights that it holds in ``Constant`` nodes.
    """
    opset = _opset(model)
    check_nodes(model.graph.node)
    for function in model.functions:
        check_nodes(function.node)
    if model.graph.sparse_initializer:
        raise FormatError("sparse initialisers are not supported: store them dense")
    reader = TensorReader(folder)
    declared = _by_name(model.graph.input, "input")
    _by_name(model.graph.output, "output")
    constants: dict[str, Constant] = {}
    initialisers = []
    for tensor in model.graph.initializer:
        where = f"initialiser {tensor.name!r}"
        if not tensor.name or tensor.name in constants:
            raise FormatError(f"{where}: expected a name, and each once")
        array = reader.read(tensor, where)
        constants[tensor.name] = Constant(array, (tensor.name,))
        initialisers.append(
            Initialiser(
                tensor.name, array.shape, str(array.dtype), array.nbytes, tensor.name in declared
            )
        )
    inputs = [value for name, value in declared.items() if name not in constants]
    for value in inputs:
        _check_input(value)
    if not model.graph.output:
        raise FormatError("the model has no outputs")
    light = inline_functions(_without_tensors(model, inputs, constants))
    check_nodes(light.graph.node)
    graph = Graph(
        model.graph.name,
        opset,
        model.ir_version,
        list(light.graph.node),
        name_free_axes(inputs),
        without_free_axes(list(model.graph.output)),
        constants,
    )
    _check_domains(graph.nodes)
    _check_attributes(graph.nodes)
    initialisers += _read_constant_nodes(graph, reader)
    hoist_constants(graph, reader.read, lambda node: _value_of(node, reader), FreshNames(graph))
    return graph, initialisers


def _opset(model: ModelProto) -> int:
    versions: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain in STANDARD else entry.domain
        if domain in versions:
            raise FormatError(f"two versions of the operators of domain {domain!r}")
        versions[domain] = entry.version
    newest = onnx.defs.onnx_opset_version()
    opset = versions.get("")
    if opset is None:
        raise FormatError("the model does not say which version of ONNX's operators it uses")
    if opset < FIRST_OPSET:
        raise FormatError(
            f"opset {opset}: expected {FIRST_OPSET} or newer; convert it with "
            f"onnx.version_converter.convert_version(model, {FIRST_OPSET})"
        )
    if opset > newest:
        raise FormatError(
            f"opset {opset}: the installed onnx {onnx.__version__} knows versions up to {newest}"
        )
    if model.ir_version > onnx.IR_VERSION or model.ir_version < 3:
        raise FormatError(
            f"file format version {model.ir_version}: the installed onnx {onnx.__version__} knows "
            f"versions up to {onnx.IR_VERSION}"
        )
    if versions.get(DOMAIN, VERSION) != VERSION:
        raise FormatError(f"domain {DOMAIN} in version {versions[DOMAIN]}: expected {VERSION}")
    return opset


def _by_name(values: Iterable[ValueInfoProto], what: str) -> dict[str, ValueInfoProto]:
    named: dict[str, ValueInfoProto] = {}
    for value in values:
        if not value.name or value.name in named:
            raise FormatError(f"{what} {value.name!r}: expected a name, and each once")
        named[value.name] = value
    return named


def _check_input(value: ValueInfoProto) -> None:
    tensor = tensor_type(value)
    where = f"input {value.name!r}"
    if tensor is None:
        raise FormatError(f"{where} is no tensor: sequences, maps and optionals are not supported")
    if dtype_name(tensor.elem_type) not in DTYPES:
        raise FormatError(f"{where} is of {dtype_name(tensor.elem_type)}, which is not supported")
    if not tensor.HasField("shape"):
        raise FormatError(f"{where} is of unknown rank: give it a shape, with names for free axes")
    elements = 1
    for axis, extent in enumerate(tensor.shape.dim):
        if extent.HasField("dim_value"):
            if extent.dim_value < 1:
                raise FormatError(
                    f"{where}: axis {axis} is {extent.dim_value}: expected at least 1, or a name "
                    "where its size is free"
                )
            elements *= extent.dim_value
    if elements > MAX_ELEMENTS or len(tensor.shape.dim) > MAX_RANK:
        raise FormatError(
            f"{where} has {elements:,} elements on {len(tensor.shape.dim)} axes: expected at most "
            f"{MAX_ELEMENTS:,} on {MAX_RANK}"
        )


def _without_tensors(
    model: ModelProto, inputs: list[ValueInfoProto], constants: dict[str, Constant]
) -> ModelProto:
    """The model with initialisers as inputs, which keeps their names from being used again."""
    light = ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = model.graph.name or "graph"
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(inputs)
    light.graph.input.extend(
        helper.make_tensor_value_info(name, constant.elem_type, constant.value.shape)
        for name, constant in constants.items()
    )
    light.graph.output.extend(model.graph.output)
    return light


def _check_domains(nodes: Iterable[NodeProto]) -> None:
    foreign = {}
    nodes = list(nodes)
    outer = {id(node) for node in nodes}
    known = {DOMAIN: (LINEAR, CONV), contributed.DOMAIN: contributed.CONTRIBUTED}
    for node in nodes_inside(nodes):
        ours = node.op_type in known.get(node.domain, ())
        if ours and id(node) not in outer:
            what = "a tiled layer" if node.domain == DOMAIN else "it"
            raise FormatError(f"{describe(node)}: {what} in a branch is not supported")
        if node.domain not in STANDARD and not ours:
            foreign.setdefault(f"{node.domain}::{node.op_type}", describe(node))
    if foreign:
        raise FormatError(
            f"unknown operators {', '.join(sorted(foreign))} (first: {next(iter(foreign.values()))}"
            "): expected ONNX's own, or functions that the model defines"
            f"{_ADVICE if any(name.startswith(contributed.DOMAIN) for name in foreign) else ''}"
        )


def _check_attributes(nodes: Iterable[NodeProto]) -> None:
    for node in nodes_inside(nodes):
        if any(attribute.ref_attr_name for attribute in node.attribute):
            raise FormatError(f"{describe(node)}: refers to an attribute outside a function")


_ADVICE = (
    f"; of {contributed.DOMAIN} {', '.join(sorted(contributed.CONTRIBUTED))} are known. Compile "
    "the model as it was before ONNX Runtime optimised or quantised it, or let that write "
    "QuantizeLinear and DequantizeLinear (quant_format=QuantFormat.QDQ)"
)


def _read_constant_nodes(graph: Graph, reader: TensorReader) -> list[Initialiser]:
    """Move the values of ``Constant`` nodes to the graph's constants.

    Returns
    -------
    list of Initialiser
        Those of two or more axes: some exporters write weights so. Numbers, shapes and axes,
        of which there are many, are no news.
    """
    kept, stored = [], []
    for node in graph.nodes:
        if node.op_type != "Constant" or node.domain not in STANDARD:
            kept.append(node)
            continue
        value = _value_of(node, reader)
        if not node.output[0] or node.output[0] in graph.constants:
            raise FormatError(f"{describe(node)}: its output has no name, or one that is taken")
        name = node.output[0]
        if value.ndim < 2:
            graph.constants[name] = Constant(value)
            continue
        graph.constants[name] = Constant(value, (name,))
        stored.append(Initialiser(name, value.shape, str(value.dtype), value.nbytes, False))
    graph.nodes = kept
    return stored


def _value_of(node: NodeProto, reader: TensorReader) -> np.ndarray:
    """What a ``Constant`` node holds."""
    where = describe(node)
    if len(node.output) != 1 or len(node.attribute) != 1 or node.input:
        raise FormatError(f"{where}: expected one value and one output")
    return _constant_value(node.attribute[0], reader, where)


def _constant_value(attribute: AttributeProto, reader: TensorReader, where: str) -> np.ndarray:
    if attribute.name == "value":
        return reader.read(attribute.t, where)
    numbers = {
        "value_int": (np.int64, lambda: attribute.i),
        "value_ints": (np.int64, lambda: list(attribute.ints)),
        "value_float": (np.float32, lambda: attribute.f),
        "value_floats": (np.float32, lambda: list(attribute.floats)),
    }
    if attribute.name not in numbers:
        raise FormatError(f"{where}: a value of kind {attribute.name!r} is not supported")
    dtype, value = numbers[attribute.name]
    return np.array(value(), dtype)
