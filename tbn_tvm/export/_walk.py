"""Walks over ONNX models, branches and loop bodies included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tbn_tvm.export.functions import DOMAIN

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto


def graphs_of(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and, after it, those that its nodes hold."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from graphs_of(inner)


def tiled_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """The calls of our functions."""
    for inner in graphs_of(graph):
        yield from (node for node in inner.node if node.domain == DOMAIN)


def drop_unused_weights(graph: GraphProto) -> None:
    """Remove initialisers that nothing reads, in place."""
    used = {name for inner in graphs_of(graph) for node in inner.node for name in node.input}
    used.update(value.name for inner in graphs_of(graph) for value in inner.output)
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    if len(kept) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)
