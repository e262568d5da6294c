"""``If``: the branch that a constant condition takes; what the data decide is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper

from tbn_tvm.errors import FormatError
from tbn_tvm.frontend.onnx.fresh_names import FreshNames
from tbn_tvm.frontend.onnx.graph import (
    STANDARD,
    Constant,
    Graph,
    describe,
    subgraphs,
)
from tbn_tvm.frontend.onnx.limits import MAX_DEPTH, MAX_NODES


def is_if(node: NodeProto) -> bool:
    """Whether it is ONNX's ``If``."""
    return node.op_type == "If" and node.domain in STANDARD


def check_nodes(nodes: Iterable[NodeProto]) -> None:
    """Count nodes, those in branches too, and refuse other control flow.

    Raises
    ------
    FormatError
        Where there are too many, branches nest too deeply, or a node has graphs and is no ``If``.
    """
    left = MAX_NODES
    waiting = [(node, 0) for node in nodes]
    while waiting:
        node, depth = waiting.pop()
        left -= 1
        if left < 0:
            raise FormatError(f"more than {MAX_NODES:,} nodes")
        for graph in subgraphs(node):
            if not is_if(node):
                raise FormatError(
                    f"{describe(node)}: control flow is not supported; export the model with fixed "
                    "branches and unrolled loops"
                )
            if depth >= MAX_DEPTH:
                raise FormatError(f"branches lie in one another more than {MAX_DEPTH} deep")
            if graph.sparse_initializer or graph.input:
                raise FormatError(f"{describe(node)}: a branch has inputs or sparse initialisers")
            waiting.extend((inner, depth + 1) for inner in graph.node)


def hoist_constants(
    graph: Graph,
    read: Callable[[TensorProto, str], np.ndarray],
    read_constant: Callable[[NodeProto], np.ndarray],
    names: FreshNames,
) -> None:
    """Move what branches store to the graph's constants, under names that nothing else has."""

    def hoist(branch: GraphProto) -> None:
        renamed = {}

        def add(name: str, value: np.ndarray) -> None:
            if not name or name in renamed:
                raise FormatError(f"{name!r} in a branch: expected a name, and each once")
            renamed[name] = names.like(name)
            graph.constants[renamed[name]] = Constant(value, (name,))

        for tensor in branch.initializer:
            add(tensor.name, read(tensor, f"initialiser {tensor.name!r} of a branch"))
        kept = []
        for node in branch.node:
            if node.op_type == "Constant" and node.domain in STANDARD:
                add(node.output[0] if node.output else "", read_constant(node))
            else:
                kept.append(node)
        kept = [_renamed(node, renamed) for node in kept]
        # An output must be made in the branch.
        for output in branch.output:
            if output.name in renamed:
                kept.append(helper.make_node("Identity", [renamed[output.name]], [output.name]))
        del branch.node[:], branch.initializer[:]
        branch.node.extend(kept)
        for node in branch.node:
            for inner in subgraphs(node):
                hoist(inner)

    for node in graph.nodes:
        for branch in subgraphs(node):
            hoist(branch)


def take_branch(node: NodeProto, condition: np.ndarray, names: FreshNames) -> list[NodeProto]:
    """The nodes of the branch that is taken, then copies of its outputs to the node's.

    Parameters
    ----------
    node : NodeProto
        An ``If``.
    condition : numpy.ndarray
        Of one element.
    names : FreshNames
        Of the nodes' outputs.
    """
    name = "then_branch" if condition.reshape(-1)[0] else "else_branch"
    branches = [a.g for a in node.attribute if a.name == name and a.type == AttributeProto.GRAPH]
    if len(branches) != 1 or len(branches[0].output) != len(node.output):
        raise FormatError(f"{describe(node)}: expected one {name} with as many outputs as the node")
    renamed = {
        output: names.like(output)
        for inner in branches[0].node
        for output in inner.output
        if output
    }
    nodes = [_renamed(inner, renamed, outputs=True) for inner in branches[0].node]
    for value, output in zip(branches[0].output, node.output, strict=True):
        if output:
            source = renamed.get(value.name, value.name)
            nodes.append(helper.make_node("Identity", [source], [output]))
    return nodes


def _renamed(node: NodeProto, names: dict[str, str], outputs: bool = False) -> NodeProto:
    """A copy of a node that takes its values under other names, in its branches too."""
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    if outputs:
        copy.output[:] = [names.get(name, name) for name in node.output]
    for graph in subgraphs(copy):
        # What a branch makes under such a name hides the value outside.
        made = {output for inner in graph.node for output in inner.output}
        made.update(tensor.name for tensor in graph.initializer)
        seen = {old: new for old, new in names.items() if old not in made}
        inside = [_renamed(inner, seen) for inner in graph.node]
        for value in graph.output:
            if value.name in seen:
                inside.append(helper.make_node("Identity", [seen[value.name]], [value.name]))
        del graph.node[:]
        graph.node.extend(inside)
    return copy
