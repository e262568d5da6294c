"""Calls of our own functions become standard products over a tiled constant."""

from __future__ import annotations

from onnx import NodeProto, helper

from tbn_tvm.errors import FormatError
from tbn_tvm.export.functions import CONV, DOMAIN, TiledNode, read_tiled_node
from tbn_tvm.frontend.onnx.fresh_names import FreshNames
from tbn_tvm.frontend.onnx.graph import Constant, Graph, describe


def read_tiled_calls(graph: Graph) -> None:
    """Replace each call of a function of :mod:`tbn_tvm.export.functions`, in place.

    The weight becomes a constant whose value is the tiled tensor, bits and alphas as stored; the
    product over it is ``MatMul`` or ``Conv``, which every later step knows.

    Raises
    ------
    FormatError
        Where a call's parts are no tiled layer, or are not constant.
    """
    names = FreshNames(graph)
    nodes: list[NodeProto] = []
    for node in graph.nodes:
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        nodes.extend(_replacement(node, _read(node, graph), graph, names))
    graph.nodes = nodes


def _read(node: NodeProto, graph: Graph) -> TiledNode:
    if len(node.input) not in (3, 4) or len(node.output) != 1:
        raise FormatError(f"{describe(node)}: expected X, tile, alpha[, bias] and one output")
    parts = []
    for name in node.input[1:3]:
        constant = graph.constants.get(name)
        if constant is None or constant.array is None:
            raise FormatError(
                f"{describe(node)}: {name!r} is no constant; tile and alpha must be initialisers"
            )
        parts.append(constant.array)
    return read_tiled_node(node, *parts)


def _replacement(
    node: NodeProto, call: TiledNode, graph: Graph, names: FreshNames
) -> list[NodeProto]:
    x, tile, alpha = node.input[:3]
    bias = node.input[3] if len(node.input) == 4 else ""
    weight, typed = names.like("tiled"), names.like("tiled")
    sources = tuple(
        source for part in (tile, alpha) for source in graph.constants[part].sources or (part,)
    )
    graph.constants[weight] = Constant(call.weight, sources)
    # The function rounds its weight to the type of X, and so does a cast.
    cast = helper.make_node("CastLike", [weight, x], [typed])
    if node.op_type == CONV:
        inputs = [x, typed, bias] if bias else [x, typed]
        product = helper.make_node(
            "Conv",
            inputs,
            list(node.output),
            name=node.name,
            strides=call.strides,
            pads=call.pads,
            dilations=call.dilations,
            group=call.group,
        )
        return [cast, product]
    transposed = names.like("tiled")
    result = names.like("tiled") if bias else node.output[0]
    nodes = [
        cast,
        helper.make_node("Transpose", [typed], [transposed], perm=[1, 0]),
        helper.make_node("MatMul", [x, transposed], [result], name=node.name),
    ]
    if bias:
        nodes.append(helper.make_node("Add", [result, bias], list(node.output)))
    return nodes
