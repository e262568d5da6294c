"""Constant subgraphs are computed before import, where their size is known to be bounded."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from onnx import ModelProto, NodeProto, ValueInfoProto, helper
from onnx.reference import ReferenceEvaluator

from tbn_tvm.errors import FormatError
from tbn_tvm.frontend.onnx.branches import is_if, take_branch
from tbn_tvm.frontend.onnx.fresh_names import FreshNames
from tbn_tvm.frontend.onnx.graph import STANDARD, Constant, Graph, describe
from tbn_tvm.frontend.onnx.known_shapes import KnownShapes
from tbn_tvm.frontend.onnx.limits import FOLD_FACTOR, MAX_ELEMENTS, SPARE_BYTES

_Bound = Callable[[NodeProto, list[np.ndarray]], int]
"""How many elements the outputs of a node have at most, in all; for MatMul, multiply-adds."""


def fold_constants(graph: Graph) -> None:
    """Compute nodes whose inputs are all constant, in place, by ONNX's reference evaluator.

    What is folded: operators that exporters put between stored weights and products, and those
    that compute shapes, of fixed extents of any tensor. Tiled constants stay as they are.

    Raises
    ------
    FormatError
        Where the results would take more memory than the model's own tensors justify.
    """
    stored = sum(c.array.nbytes for c in graph.constants.values() if c.array is not None)
    budget = SPARE_BYTES + FOLD_FACTOR * stored
    shapes = KnownShapes(graph)
    kept = []

    def keep(node: NodeProto) -> None:
        known = shapes.follow(node)
        if known is None:
            kept.append(node)
        else:
            graph.constants[node.output[0]] = Constant(known)

    waiting = graph.nodes[::-1]
    names = FreshNames(graph)
    while waiting:
        node = waiting.pop()
        if is_if(node):
            waiting.extend(reversed(take_branch(node, _condition(node, graph), names)))
            continue
        if node.op_type == "Gemm" and node.domain in STANDARD:
            budget -= _take_up_alpha(node, graph)
        arrays = _constant_inputs(node, graph)
        bound = _BOUNDS.get(node.op_type) if node.domain in STANDARD else None
        if arrays is None or bound is None:
            keep(node)
            continue
        given = [array for array in arrays if array is not None]
        try:
            elements = bound(node, given)
        except (ValueError, IndexError, TypeError, OverflowError):
            keep(node)  # malformed: the checks that follow say how
            continue
        # Eight bytes are the widest element.
        budget -= 8 * elements
        if elements > MAX_ELEMENTS or budget < 0:
            raise FormatError(
                f"{describe(node)}: computing constants would take more memory than the model's "
                f"tensors of {stored:,} bytes justify"
            )
        results = _evaluate(node, arrays, graph.opset)
        if results is None:
            keep(node)
            continue
        sources = _sources(node, graph)
        for name, result in zip(node.output, results, strict=True):
            if name:
                graph.constants[name] = Constant(result, sources)
    graph.nodes = kept


def _condition(node: NodeProto, graph: Graph) -> np.ndarray:
    constant = graph.constants.get(node.input[0]) if node.input else None
    if constant is None or constant.array is None or constant.array.size != 1:
        raise FormatError(
            f"{describe(node)}: its condition depends on the data, and control flow is not "
            "supported; export the model with fixed branches"
        )
    return constant.array


def _take_up_alpha(node: NodeProto, graph: Graph) -> int:
    """Scale a constant B by a Gemm's alpha, so that the product has B alone as its weight.

    Returns
    -------
    int
        Bytes that the scaled copy takes.
    """
    alpha = _attribute(node, "alpha", 1.0)
    constant = graph.constants.get(node.input[1]) if len(node.input) > 1 else None
    if alpha == 1.0 or constant is None or constant.array is None:
        return 0
    if constant.array.dtype.kind in "iub":
        return 0
    name = f"{node.input[1]}*{alpha!r}"
    while name in graph.constants:
        name += "'"
    with np.errstate(all="ignore"):
        scaled = constant.array * np.asarray(alpha, constant.array.dtype)
    graph.constants[name] = Constant(scaled, constant.sources)
    node.input[1] = name
    kept = [attribute for attribute in node.attribute if attribute.name != "alpha"]
    del node.attribute[:]
    node.attribute.extend(kept)
    return scaled.nbytes


def _constant_inputs(node: NodeProto, graph: Graph) -> list[np.ndarray | None] | None:
    """The values of a node's inputs, None for those left out; None where one is not known."""
    arrays: list[np.ndarray | None] = []
    for name in node.input:
        constant = graph.constants.get(name) if name else None
        if name and (constant is None or constant.array is None):
            return None
        arrays.append(constant.array if constant is not None else None)
    return arrays if any(array is not None for array in arrays) else None


def _sources(node: NodeProto, graph: Graph) -> tuple[str, ...]:
    """Initialisers behind a node's inputs, those of the largest input first."""
    inputs = [graph.constants[name] for name in node.input if name]
    inputs.sort(key=lambda constant: constant.array.size, reverse=True)
    return tuple(dict.fromkeys(source for constant in inputs for source in constant.sources))


def _evaluate(
    node: NodeProto, arrays: list[np.ndarray | None], opset: int
) -> list[np.ndarray] | None:
    single = ModelProto()
    single.CopyFrom(
        helper.make_model(
            helper.make_graph(
                [node],
                "constant",
                [ValueInfoProto(name=name) for name in dict.fromkeys(node.input) if name],
                [ValueInfoProto(name=name) for name in node.output if name],
            ),
            opset_imports=[helper.make_opsetid("", _evaluated_as(node, opset))],
        )
    )
    feeds = {name: array for name, array in zip(node.input, arrays, strict=True) if name}
    try:
        with np.errstate(all="ignore"):
            made = iter(ReferenceEvaluator(single).run(None, feeds))
    except Exception:  # anything: a node that the evaluator refuses is left to later steps
        return None
    results = [np.asarray(next(made), order="C") if name else None for name in node.output]
    return None if any(r is not None and r.dtype == object for r in results) else results


def _evaluated_as(node: NodeProto, opset: int) -> int:
    """The evaluator has DequantizeLinear from 19 on, which only adds types to that of 13."""
    return max(opset, 19) if node.op_type == "DequantizeLinear" else opset


# -- bounds ---------------------------------------------------------------------------------


def _attribute(node: NodeProto, name: str, default):
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default


def _broadcast(_node: NodeProto, arrays: list[np.ndarray]) -> int:
    return math.prod(np.broadcast_shapes(*(array.shape for array in arrays)))


def _first(_node: NodeProto, arrays: list[np.ndarray]) -> int:
    return arrays[0].size


def _all(_node: NodeProto, arrays: list[np.ndarray]) -> int:
    return sum(array.size for array in arrays)


def _given(_node: NodeProto, arrays: list[np.ndarray]) -> int:
    return math.prod(_positive(arrays[0]))


def _expand(_node: NodeProto, arrays: list[np.ndarray]) -> int:
    # Extents of 1 keep the input's: no more than the product of both.
    return max(arrays[0].size, 1) * math.prod(_positive(arrays[1]))


def _range(_node: NodeProto, arrays: list[np.ndarray]) -> int:
    start, limit, delta = (array.item() for array in arrays)
    return max(0, math.ceil((limit - start) / delta)) if delta else 0


def _window(_node: NodeProto, arrays: list[np.ndarray]) -> int:
    return max(0, arrays[0].item())


def _gather(node: NodeProto, arrays: list[np.ndarray]) -> int:
    data, indices = arrays
    extent = data.shape[_attribute(node, "axis", 0)]
    return indices.size * (data.size // max(extent, 1))


def _pad(node: NodeProto, arrays: list[np.ndarray]) -> int:
    added = np.abs(arrays[1].astype(object)).sum()
    return math.prod(extent + int(added) for extent in arrays[0].shape)


def _matmul(_node: NodeProto, arrays: list[np.ndarray]) -> int:
    a, b = arrays[:2]
    return a.size * b.size // max(1, min(a.shape[-1], *b.shape[-2:]))


def _positive(array: np.ndarray) -> list[int]:
    """Extents as Python numbers, which do not overflow."""
    return [max(int(extent), 1) for extent in array.reshape(-1).tolist()]


_ELEMENTWISE = """
    Abs Add And BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil
    Clip Cos Div Equal Exp Floor Greater GreaterOrEqual Identity Less LessOrEqual Log Max Mean Min
    Mod Mul Neg Not Or Pow Reciprocal Relu Round Sigmoid Sign Sin Sqrt Sub Sum Tanh Where Xor
"""
_REARRANGING = """
    ArgMax ArgMin CumProd CumSum DequantizeLinear Flatten ReduceL1 ReduceL2 ReduceMax ReduceMean
    QuantizeLinear ReduceMin ReduceProd ReduceSum ReduceSumSquare Reshape Shape Size Slice Split
    Squeeze Transpose Trilu Unsqueeze
"""
_BOUNDS: dict[str, _Bound] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _broadcast),
    **dict.fromkeys(_REARRANGING.split(), _first),
    "Concat": _all,
    "ConstantOfShape": _given,
    "Expand": _expand,
    "Gather": _gather,
    "MatMul": _matmul,
    "Pad": _pad,
    "Range": _range,
    "Tile": _expand,
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow"), _window),
}
