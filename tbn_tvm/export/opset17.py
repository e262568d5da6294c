"""From opset 18, the oldest that PyTorch's exporter writes, to opset 17.

ONNX's own version converter has no way back for ``Split`` and leaves attributes behind that opset
17 does not know. Only what changed between the two is rewritten. What opset 17 cannot say is
refused; ONNX's checker finds whatever else is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tbn_tvm.errors import UsageError
from tbn_tvm.export._walk import drop_unused_weights, graphs_of

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

_NEW = frozenset(
    {
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "CenterCropPad",
        "Col2Im",
        "GroupNormalization",
    }
)
_REDUCTIONS = frozenset(
    f"Reduce{name}"
    for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
)


def lower_to_opset_17(model: ModelProto) -> None:
    """Rewrite a model of opset 18 in place; its version stays for the caller to set.

    Raises
    ------
    UsageError
        Where the model uses what opset 17 does not have.
    """
    weights = model.graph
    for graph in graphs_of(model.graph):
        nodes = [lowered for node in graph.node for lowered in _lowered(node, graph, weights)]
        del graph.node[:]
        graph.node.extend(nodes)
    drop_unused_weights(model.graph)


def _lowered(node: NodeProto, graph: GraphProto, weights: GraphProto) -> list[NodeProto]:
    """What stands for a node; new constants are added to ``weights``."""
    if node.domain:
        return [node]
    if node.op_type in _NEW:
        raise _refusal(node, "opset 17 does not have it")
    if node.op_type in _REDUCTIONS:
        return [_reduction(node, weights)]
    if node.op_type == "Split":
        return [_split(node, graph, weights)]
    if node.op_type == "Mish":
        return _mish(node)
    return [node]


def _reduction(node: NodeProto, weights: GraphProto) -> NodeProto:
    """Axes move from an input to an attribute."""
    from onnx import helper, numpy_helper

    axes = node.input[1] if len(node.input) > 1 else ""
    if not axes and _attribute(node, "noop_with_empty_axes", 0):
        raise _refusal(node, "opset 17 cannot say that it reduces nothing")
    lowered = _copy(node, without=("noop_with_empty_axes",))
    del lowered.input[1:]
    if axes:
        values = [t for t in weights.initializer if t.name == axes]
        if not values:
            raise _refusal(node, "its axes are computed, which opset 17 cannot say")
        axis_list = numpy_helper.to_array(values[0]).tolist()
        lowered.attribute.append(helper.make_attribute("axes", axis_list))
    return lowered


def _split(node: NodeProto, graph: GraphProto, weights: GraphProto) -> NodeProto:
    """A number of parts becomes their sizes, the last of which may be smaller."""
    import numpy as np
    from onnx import numpy_helper

    if _attribute(node, "num_outputs", 0) == 0:
        return node
    lowered = _copy(node, without=("num_outputs",))
    count, axis = len(node.output), _attribute(node, "axis", 0)
    extent = _extent(node.input[0], axis, graph)
    if extent is None:
        raise _refusal(node, "the size of what it splits is symbolic")
    part = -(-extent // count)
    sizes = [min(part, max(0, extent - i * part)) for i in range(count)]
    name = f"{node.output[0]}.sizes"
    weights.initializer.append(numpy_helper.from_array(np.asarray(sizes, np.int64), name))
    lowered.input.append(name)
    return lowered


def _mish(node: NodeProto) -> list[NodeProto]:
    """``x * tanh(softplus(x))``."""
    from onnx import helper

    (x,), (y,) = node.input, node.output
    return [
        helper.make_node("Softplus", [x], [f"{y}.softplus"], f"{node.name}.softplus"),
        helper.make_node("Tanh", [f"{y}.softplus"], [f"{y}.tanh"], f"{node.name}.tanh"),
        helper.make_node("Mul", [x, f"{y}.tanh"], [y], node.name),
    ]


def _extent(name: str, axis: int, graph: GraphProto) -> int | None:
    """The size of a value along an axis, where it is a number that the model tells."""
    for value in (*graph.value_info, *graph.input):
        dims = value.type.tensor_type.shape.dim
        if value.name == name and -len(dims) <= axis < len(dims):
            return dims[axis].dim_value if dims[axis].HasField("dim_value") else None
    return None


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def _copy(node: NodeProto, without: tuple[str, ...]) -> NodeProto:
    from onnx import NodeProto

    copy = NodeProto()
    copy.CopyFrom(node)
    kept = [attribute for attribute in node.attribute if attribute.name not in without]
    del copy.attribute[:]
    copy.attribute.extend(kept)
    return copy


def _refusal(node: NodeProto, reason: str) -> UsageError:
    return UsageError(f"opset 17: {node.op_type} ({node.name}): {reason}; choose opset 18 or newer")
