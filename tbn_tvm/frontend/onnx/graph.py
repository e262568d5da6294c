"""A model's graph while it is prepared: nodes as ONNX has them, constants apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from tbn_tvm.tiling import TiledTensor

STANDARD = ("", "ai.onnx")
"""Names of the domain of ONNX's own operators."""

SMALL = 1024
"""Elements up to which an integer constant may be a shape that inference needs to see."""


@dataclass(frozen=True)
class Constant:
    """A value known at compile time.

    Attributes
    ----------
    value : numpy.ndarray or TiledTensor
        A tiled tensor stands for its dense float32 expansion.
    sources : tuple of str
        Names of the initialisers, or ``Constant`` nodes of two or more axes, that it was made from,
        the largest first.
    """

    value: np.ndarray | TiledTensor
    sources: tuple[str, ...] = ()

    @property
    def array(self) -> np.ndarray | None:
        """The value where it is dense."""
        return self.value if isinstance(self.value, np.ndarray) else None

    @property
    def elem_type(self) -> int:
        """ONNX's number of the element type."""
        dtype = self.value.dtype if isinstance(self.value, np.ndarray) else np.dtype("float32")
        return helper.np_dtype_to_tensor_dtype(dtype)


@dataclass
class Graph:
    """What preparation steps take and give. Constants stay out of the protocol buffer, which the
    libraries that check it copy several times.

    Attributes
    ----------
    name : str
        The graph's name in the file.
    opset : int
        Version of ONNX's operators.
    ir_version : int
        Version of the file format.
    nodes : list of NodeProto
        In an order of execution.
    inputs, outputs : list of ValueInfoProto
        As the model declares them.
    constants : dict of str to Constant
        By value name.
    """

    name: str
    opset: int
    ir_version: int
    nodes: list[NodeProto]
    inputs: list[ValueInfoProto]
    outputs: list[ValueInfoProto]
    constants: dict[str, Constant] = field(default_factory=dict)

    def to_model(self) -> ModelProto:
        """The graph as a model that is small: large constants become inputs."""
        used = {name for node in self.nodes for name in used_names(node)}
        used.update(output.name for output in self.outputs)
        inputs, initialisers = list(self.inputs), []
        for name, constant in self.constants.items():
            if name not in used:
                continue
            array = constant.array
            if array is not None and array.size <= SMALL and array.dtype.kind in "iu":
                initialisers.append(
                    helper.make_tensor(
                        name, constant.elem_type, array.shape, array.tobytes(), raw=True
                    )
                )
            else:
                shape = constant.value.shape
                inputs.append(helper.make_tensor_value_info(name, constant.elem_type, shape))
        graph = GraphProto(name=self.name or "graph")
        graph.node.extend(self.nodes)
        graph.input.extend(inputs)
        graph.output.extend(self.outputs)
        graph.initializer.extend(initialisers)
        return helper.make_model(
            graph,
            ir_version=self.ir_version,
            opset_imports=[helper.make_opsetid("", self.opset)],
        )

    def without_dead_code(self) -> Graph:
        """Without nodes and constants that no output needs."""
        needed = {output.name for output in self.outputs}
        nodes = []
        for node in reversed(self.nodes):
            if any(name in needed for name in node.output if name):
                nodes.append(node)
                needed.update(used_names(node))
        constants = {name: c for name, c in self.constants.items() if name in needed}
        return Graph(
            self.name,
            self.opset,
            self.ir_version,
            nodes[::-1],
            self.inputs,
            self.outputs,
            constants,
        )


def describe(node: NodeProto) -> str:
    """How messages call a node."""
    name = node.name or "/".join(output for output in node.output if output)
    kind = node.op_type if node.domain in STANDARD else f"{node.domain}::{node.op_type}"
    return f"node {name!r} ({kind})"


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs in a node's attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def nodes_inside(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """The nodes, and those of their branches."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from nodes_inside(graph.node)


def used_names(node: NodeProto) -> Iterator[str]:
    """What a node takes, and what its branches take or give."""
    yield from node.input
    for graph in subgraphs(node):
        yield from (value.name for value in graph.output)
        for inner in graph.node:
            yield from used_names(inner)


def tensor_type(value: ValueInfoProto):
    """The tensor type of a value, or None where it is none."""
    if not value.HasField("type") or not value.type.HasField("tensor_type"):
        return None
    return value.type.tensor_type


def dtype_name(elem_type: int) -> str:
    """NumPy's name of an element type, or ONNX's where NumPy has none."""
    try:
        return str(np.dtype(helper.tensor_dtype_to_np_dtype(elem_type)))
    except (KeyError, ValueError, TypeError):
        known = elem_type in TensorProto.DataType.values()
        return TensorProto.DataType.Name(elem_type).lower() if known else f"type {elem_type}"
