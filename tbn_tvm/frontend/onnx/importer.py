"""TVM's ONNX importer, taught our constants and mended converters."""

from __future__ import annotations

import contextlib
import io
import re

import numpy as np
import tvm
from onnx import GraphProto, ModelProto, helper
from tvm import relax
from tvm import tirx as tir
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

from tbn_tvm import op
from tbn_tvm.errors import FormatError
from tbn_tvm.frontend.onnx.checking import check_free_axes, check_graph
from tbn_tvm.frontend.onnx.converters import CONVERTERS, GUARDS
from tbn_tvm.frontend.onnx.graph import Constant, Graph
from tbn_tvm.frontend.onnx.recurrent import check_steps
from tbn_tvm.frontend.onnx.verifying import verify_types
from tbn_tvm.tiling import TiledTensor


def to_relax(graph: Graph) -> tvm.IRModule:
    """Import a prepared graph, and verify what came of it.

    Returns
    -------
    tvm.IRModule
        ``main`` takes the graph's inputs and returns its outputs, both in order.

    Raises
    ------
    FormatError
        Where TVM does not know an operator, or a way of using it.
    """
    model = ModelProto()
    model.graph.node.extend(graph.nodes)
    model.graph.input.extend(graph.inputs)
    model.graph.output.extend(graph.outputs)
    types = check_graph(graph)
    check_free_axes(graph)
    check_steps(graph.nodes, types)
    importer = _Importer(graph.constants)
    try:
        # The importer prints what it was at when it fails.
        with contextlib.redirect_stdout(io.StringIO()):
            mod = importer.from_onnx(model.graph, graph.opset)
    except FormatError:
        raise
    except Exception as error:  # converters raise whatever occurs to them
        where = f"{importer.at}: " if importer.at else ""
        reason = str(error).strip().splitlines()
        raise FormatError(
            f"{where}TVM cannot import it ({reason[0] if reason else type(error).__name__})"
        ) from None
    verify_types(importer.made, types, graph.inputs)
    return mod


class _Importer(ONNXGraphImporter):
    """Takes constants from a prepared graph; our converters go before TVM's."""

    def __init__(self, constants: dict[str, Constant]) -> None:
        super().__init__({}, None)
        self._constants = constants
        self.at = ""
        self.made: dict[str, relax.Expr] = {}

    def _parse_graph_initializers(self, graph) -> None:
        for name, constant in self._constants.items():
            if constant.array is not None:
                self._nodes[name] = relax.const(tvm.runtime.tensor(constant.array))

    def _construct_nodes(self, graph) -> None:
        # Calls need a function around them, which is open only now.
        for name, constant in self._constants.items():
            tiled = constant.value
            if isinstance(tiled, TiledTensor):
                self._nodes[name] = self.bb.emit(
                    op.tiled_weight(
                        relax.const(tiled.tile),
                        relax.const(tiled.alphas),
                        shape=tiled.shape,
                        p=tiled.p,
                    )
                )
        super()._construct_nodes(graph)
        self.made = dict(self._nodes)
        for output in graph.output:
            value = self._nodes[output.name]
            # TVM computes with shapes apart from tensors.
            if isinstance(value, relax.ShapeExpr):
                self._nodes[output.name] = _shape_as_tensor(self.bb, value)

    def _check_for_unsupported_ops(self, graph) -> None:
        """Some of our converters are of operators that TVM's importer does not know."""
        theirs = [node for node in graph.node if node.op_type not in CONVERTERS]
        super()._check_for_unsupported_ops(GraphProto(node=theirs))

    def _sanitize_name(self, name: str) -> str:
        """An identifier, each once; the signature keeps the model's own names."""
        cleaned = re.sub(r"\W", "_", name, flags=re.ASCII)
        if not cleaned or cleaned[0].isdigit():
            cleaned = f"input_{cleaned}"
        return str(self._name_supply.fresh_name(cleaned))

    def _parse_attr(self, attr_proto) -> dict:
        """Attributes by name; TVM's own reading refuses empty lists."""
        attributes = {}
        for attribute in attr_proto:
            value = helper.get_attribute_value(attribute)
            attributes[attribute.name] = tuple(value) if isinstance(value, list) else value
        return attributes

    def _convert_operator(self, op_name: str, inputs, attrs: dict, opset: int) -> relax.Expr:
        self.at = f"node {attrs['tvm_custom']['name']!r} ({op_name})"
        if op_name in GUARDS:
            GUARDS[op_name](inputs, attrs)
        convert = CONVERTERS.get(op_name)
        if convert is None:
            return super()._convert_operator(op_name, inputs, attrs, opset)
        result = convert(self.bb, inputs, attrs, opset)
        return self.bb.normalize(result) if isinstance(result, relax.Expr) else result


def _shape_as_tensor(bb, shape: relax.ShapeExpr) -> relax.Expr:
    extents = list(shape.values)
    if all(isinstance(extent, tir.IntImm) for extent in extents):
        return relax.const(np.array([int(extent) for extent in extents]), "int64")
    return bb.emit(relax.op.shape_to_tensor(shape))
