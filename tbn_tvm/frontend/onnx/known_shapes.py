"""Extents that are fixed, and numbers made of them: constants that no tensor is needed for."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import NodeProto, TypeProto, helper, shape_inference

from tbn_tvm.frontend.onnx.graph import SMALL, STANDARD, Graph, nodes_inside
from tbn_tvm.frontend.onnx.shape_arithmetic import compute, objects, takes


class KnownShapes:
    """Follows a graph's nodes in order, and tells those whose output is made of fixed extents.

    Parameters
    ----------
    graph : Graph
        Its constants may become more meanwhile.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._types: dict[str, TypeProto] = {value.name: value.type for value in graph.inputs}
        self._values: dict[str, np.ndarray] = {}
        self._needed = any(node.op_type in ("Shape", "Size") for node in nodes_inside(graph.nodes))

    def follow(self, node: NodeProto) -> np.ndarray | None:
        """Take note of a node; returns its output where that is known now."""
        if not self._needed or node.domain not in STANDARD:
            return None
        self._infer(node)
        value = self._value(node)
        if value is None:
            return None
        if all(isinstance(element, int) for element in value.flat):
            return value.astype(np.int64)
        self._values[node.output[0]] = value
        return None

    def _value(self, node: NodeProto) -> np.ndarray | None:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type in ("Shape", "Size"):
            extents = self._extents(node.input[0])
            if extents is None:
                return None
            if node.op_type == "Shape":
                return extents[attributes.get("start", 0) : attributes.get("end")]
            whole = None if any(extent is None for extent in extents) else math.prod(extents)
            return objects([whole], ())
        if not any(name in self._values for name in node.input):
            return None
        values = []
        for at, name in enumerate(node.input):
            values.append(self._known(name, node.op_type, at) if name else None)
            if name and values[-1] is None:
                return None
        return compute(node.op_type, attributes, values, lambda _a, _b: None)

    def _known(self, name: str, kind: str, at: int) -> np.ndarray | None:
        constant = self._graph.constants.get(name)
        if constant is None or constant.array is None:
            return self._values.get(name)
        array = constant.array
        if not takes(kind, at, str(array.dtype)) or array.size > SMALL:
            return None
        return objects((int(number) for number in array.flat), array.shape)

    def _extents(self, name: str) -> np.ndarray | None:
        held = self._type(name)
        if held is None or not held.tensor_type.HasField("shape"):
            return None
        extents = held.tensor_type.shape.dim
        known = (e.dim_value if e.HasField("dim_value") else None for e in extents)
        return objects(known, (len(extents),))

    def _type(self, name: str) -> TypeProto | None:
        constant = self._graph.constants.get(name)
        if constant is None:
            return self._types.get(name)
        return helper.make_tensor_type_proto(constant.elem_type, constant.value.shape)

    def _infer(self, node: NodeProto) -> None:
        """Types of the outputs, by ONNX's own rule for the operator."""
        types = {name: self._type(name) for name in node.input if name}
        if any(held is None for held in types.values()):
            return
        data = {}
        for name in types:
            constant = self._graph.constants.get(name)
            array = constant.array if constant is not None else None
            if array is not None and array.size <= SMALL and array.dtype.kind in "iu":
                data[name] = helper.make_tensor(
                    name, constant.elem_type, array.shape, array.tobytes(), raw=True
                )
        opset = self._graph.opset
        try:
            made = shape_inference.infer_node_outputs(
                onnx.defs.get_schema(node.op_type, opset, ""),
                node,
                types,
                data,
                opset_imports=[helper.make_opsetid("", opset)],
                ir_version=self._graph.ir_version,
            )
        except Exception:  # the library's errors are of no one kind; the checks that follow tell
            return
        self._types.update({name: held for name, held in made.items() if name})
