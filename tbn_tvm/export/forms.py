"""Other forms of an exported model, for tools that do not know functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from tbn_tvm.export._walk import drop_unused_weights, graphs_of, tiled_nodes
from tbn_tvm.export.functions import DOMAIN, LINEAR, TiledNode, read_tiled_node

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

FORMS = ("functions", "inline", "dense")
"""Functions of our domain; their bodies in the graph, on the same bits; float weights."""


def layers_of(model: ModelProto) -> Iterator[tuple[str, TiledNode]]:
    """Name and content of each tiled layer of a model in the form of functions."""
    arrays = _arrays(model.graph)
    for node in tiled_nodes(model.graph):
        yield node.name, read_tiled_node(node, arrays[node.input[1]], arrays[node.input[2]])


def inlined(model: ModelProto) -> ModelProto:
    """A model whose graph holds the functions' bodies, still on bits and alphas."""
    from onnx import inliner

    result = inliner.inline_local_functions(model)
    _forget_domain(result)
    return result


def dense(model: ModelProto) -> ModelProto:
    """A model with float weights: ``Conv``, and ``MatMul`` with ``Add``."""
    from onnx import ModelProto

    result = ModelProto()
    result.CopyFrom(model)
    arrays = _arrays(result.graph)
    for graph in graphs_of(result.graph):
        types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output)}
        nodes = []
        for node in graph.node:
            if node.domain != DOMAIN:
                nodes.append(node)
                continue
            layer = read_tiled_node(node, arrays[node.input[1]], arrays[node.input[2]])
            nodes.extend(_dense_layer(node, layer, types[node.output[0]], result.graph))
        del graph.node[:]
        graph.node.extend(nodes)
    del result.functions[:]
    _forget_domain(result)
    drop_unused_weights(result.graph)
    return result


def _dense_layer(
    node: NodeProto, layer: TiledNode, dtype: int, weights: GraphProto
) -> list[NodeProto]:
    """What stands for a node; its weight is added to ``weights``."""
    from onnx import helper, numpy_helper

    # In float32, where alphas are exact; then to the dtype, which NumPy may not have.
    values = layer.weight.expand(np.float32)
    linear = node.op_type == LINEAR
    name = f"{node.name}.weight"
    tensor = numpy_helper.from_array(
        np.ascontiguousarray(values.T if linear else values).astype(
            helper.tensor_dtype_to_np_dtype(dtype)
        ),
        name,
    )
    weights.initializer.append(tensor)
    x, bias, y = node.input[0], node.input[3:], node.output[0]
    if not linear:
        return [
            helper.make_node(
                "Conv",
                [x, name, *bias],
                [y],
                node.name,
                strides=layer.strides,
                pads=layer.pads,
                dilations=layer.dilations,
                group=layer.group,
            )
        ]
    if not bias:
        return [helper.make_node("MatMul", [x, name], [y], node.name)]
    return [
        helper.make_node("MatMul", [x, name], [f"{y}.product"], node.name),
        helper.make_node("Add", [f"{y}.product", *bias], [y], f"{node.name}.bias"),
    ]


def _arrays(graph: GraphProto) -> dict[str, np.ndarray]:
    """Tiles and alphas by name."""
    from onnx import numpy_helper

    used = {name for node in tiled_nodes(graph) for name in node.input[1:3]}
    return {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.name in used}


def _forget_domain(model: ModelProto) -> None:
    kept = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    model.doc_string = ""
