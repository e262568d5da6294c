"""What PyTorch's exporter writes, in the terms of opsets 17 and 18.

PyTorch's exporter writes opset 18 and newer, but pads circularly as opset 19 does. ONNX's own
version converter has no way back for ``Split`` and leaves attributes behind that opset 17 does not
know. Only what changed is rewritten. What an opset cannot say is refused; ONNX's checker finds
whatever else is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tbn_tvm.errors import UsageError
from tbn_tvm.export._walk import drop_unused_weights, graphs_of

if TYPE_CHECKING:
    import numpy as np
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


def lower_to_opset(model: ModelProto, opset: int) -> None:
    """Rewrite a model in place for an older opset; its version stays for the caller to set.

    Parameters
    ----------
    model : onnx.ModelProto
        Of opset 18 as PyTorch's exporter writes it.
    opset : int
        17 or 18; for newer ones nothing is done.

    Raises
    ------
    UsageError
        Where the model uses what opset 17 does not have.
    """
    if opset > 18:
        return
    rewrite = _for_opset_18 if opset == 18 else _for_opset_17
    for graph in graphs_of(model.graph):
        nodes = [
            lowered
            for node in graph.node
            for lowered in ([node] if node.domain else rewrite(node, graph, model.graph))
        ]
        del graph.node[:]
        graph.node.extend(nodes)
    drop_unused_weights(model.graph)


def _for_opset_18(node: NodeProto, graph: GraphProto, weights: GraphProto) -> list[NodeProto]:
    """What stands for a node; new constants are added to ``weights``."""
    wraps = any(a.name == "mode" and a.s == b"wrap" for a in node.attribute)
    return _circular_pad(node, weights) if node.op_type == "Pad" and wraps else [node]


def _for_opset_17(node: NodeProto, graph: GraphProto, weights: GraphProto) -> list[NodeProto]:
    """What stands for a node; new constants are added to ``weights``."""
    if node.op_type in _NEW:
        raise _refusal(node, "opset 17 does not have it")
    if node.op_type in _REDUCTIONS:
        return [_reduction(node, weights)]
    if node.op_type == "Split":
        return [_split(node, graph, weights)]
    if node.op_type == "Mish":
        return _mish(node)
    return _for_opset_18(node, graph, weights)


def _circular_pad(node: NodeProto, weights: GraphProto) -> list[NodeProto]:
    """Slices of either end put at the other, an axis at a time."""
    import numpy as np
    from onnx import helper, numpy_helper

    amounts = _constant(node.input[1], weights)
    axes = _constant(node.input[3], weights) if len(node.input) > 3 else None
    if amounts is None or (axes is None and len(node.input) > 3):
        raise _refusal(node, "its amounts of circular padding are computed", 19)
    axes = range(len(amounts) // 2) if axes is None else axes.tolist()
    stem, x, nodes = node.output[0], node.input[0], []

    def constant(value: int) -> str:
        name = f"{stem}.{value}"
        if all(tensor.name != name for tensor in weights.initializer):
            weights.initializer.append(numpy_helper.from_array(np.asarray([value], np.int64), name))
        return name

    def part(kind: str, axis: int, start: int, stop: int) -> str:
        y = f"{stem}.{kind}{axis}"
        ends = [constant(start), constant(stop), constant(axis)]
        nodes.append(helper.make_node("Slice", [x, *ends], [y], f"{node.name}.{kind}{axis}"))
        return y

    for axis, before, after in zip(axes, amounts, amounts[len(axes) :], strict=False):
        parts = [x]
        if before:
            parts.insert(0, part("end", axis, -before, np.iinfo(np.int64).max))
        if after:
            parts.append(part("start", axis, 0, after))
        if len(parts) > 1:
            x = f"{stem}.padded{axis}"
            nodes.append(
                helper.make_node("Concat", parts, [x], f"{node.name}.axis{axis}", axis=axis)
            )
    if not nodes:
        return [helper.make_node("Identity", [x], [stem], node.name)]
    nodes[-1].output[0] = stem
    return nodes


def _reduction(node: NodeProto, weights: GraphProto) -> NodeProto:
    """Axes move from an input to an attribute."""
    from onnx import helper

    axes = node.input[1] if len(node.input) > 1 else ""
    if not axes and _attribute(node, "noop_with_empty_axes", 0):
        raise _refusal(node, "opset 17 cannot say that it reduces nothing")
    lowered = _copy(node, without=("noop_with_empty_axes",))
    del lowered.input[1:]
    if axes:
        values = _constant(axes, weights)
        if values is None:
            raise _refusal(node, "its axes are computed, which opset 17 cannot say")
        lowered.attribute.append(helper.make_attribute("axes", values.tolist()))
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


def _constant(name: str, weights: GraphProto) -> np.ndarray | None:
    from onnx import numpy_helper

    found = [tensor for tensor in weights.initializer if tensor.name == name]
    return numpy_helper.to_array(found[0]) if found else None


def _refusal(node: NodeProto, reason: str, enough: int = 18) -> UsageError:
    return UsageError(f"{node.op_type} ({node.name}): {reason}; choose opset {enough} or newer")
