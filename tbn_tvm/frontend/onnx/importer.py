"""TVM's ONNX importer, taught our constants and mended converters."""

from __future__ import annotations

import contextlib
import functools
import io
import re

import tvm
from onnx import ModelProto, helper
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter, onnx_input

from tbn_tvm import op
from tbn_tvm.errors import FormatError
from tbn_tvm.frontend.onnx.checking import check_free_axes, check_graph
from tbn_tvm.frontend.onnx.converters import CONVERTERS, GUARDS
from tbn_tvm.frontend.onnx.fixed_inputs import check_fixed_inputs
from tbn_tvm.frontend.onnx.graph import Constant, Graph
from tbn_tvm.frontend.onnx.recurrent import check_steps
from tbn_tvm.frontend.onnx.shape_values import as_tensor, is_shape, shape_of_shapes, with_tensors
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


@functools.cache
def _theirs() -> frozenset[str]:
    """The operators that TVM has converters of."""
    return frozenset(onnx_frontend._get_convert_map())


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
        for node in graph.node:
            self._construct(node)
        self.made = dict(self._nodes)
        for output in graph.output:
            value = self._nodes[output.name]
            if is_shape(value):
                self._nodes[output.name] = as_tensor(self.bb, value)

    def _construct(self, node) -> None:
        inputs = onnx_input([self._nodes[name] if name else None for name in node.input])
        attrs = self._parse_attr(node.attribute)
        attrs["tvm_custom"] = {"name": node.name, "num_outputs": len(node.output)}
        made = self._convert_operator(node.op_type, inputs, attrs, self.opset)
        if isinstance(made.ty, relax.TupleType) and not isinstance(made, relax.Tuple):
            made = relax.Tuple(
                [self.bb.emit(relax.TupleGetItem(made, at)) for at in range(len(made.ty.fields))]
            )
        results = list(made.fields) if isinstance(made, relax.Tuple) else [made]
        if len(node.output) > len(results):
            missing = ", ".join(repr(name) for name in node.output[len(results) :] if name)
            raise ValueError(f"its output {missing} is not supported")
        for name, result in zip(node.output, results, strict=False):
            if name:
                self._nodes[name] = result

    def _check_for_unsupported_ops(self, graph) -> None:
        """Told for each node, which has a name."""

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
        if any(is_shape(value) for value in inputs):
            made = shape_of_shapes(op_name, inputs, attrs)
            if made is not None:
                return made
            inputs = onnx_input(with_tensors(self.bb, op_name, inputs))
        check_fixed_inputs(op_name, inputs)
        if op_name in GUARDS:
            GUARDS[op_name](inputs, attrs)
        convert = CONVERTERS.get(op_name)
        if convert is None:
            if op_name not in _theirs():
                raise ValueError(
                    "this operator is not supported: export the model with simpler ones instead"
                )
            return super()._convert_operator(op_name, inputs, attrs, opset)
        result = convert(self.bb, inputs, attrs, opset)
        return self.bb.normalize(result) if isinstance(result, relax.Expr) else result
