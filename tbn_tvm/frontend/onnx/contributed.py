"""Operators that ONNX Runtime's optimiser and quantiser write, as standard ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from onnx import NodeProto, helper

from tbn_tvm.errors import FormatError
from tbn_tvm.frontend.onnx.checking import infer_ranks
from tbn_tvm.frontend.onnx.fresh_names import FreshNames
from tbn_tvm.frontend.onnx.graph import Constant, Graph, describe
from tbn_tvm.frontend.onnx.limits import FOLD_FACTOR, SPARE_BYTES
from tbn_tvm.frontend.onnx.packed_bits import unpacked_weight

DOMAIN = "com.microsoft"
"""ONNX Runtime's own operators."""

MAX_INFERENCES = 100
"""How often types are inferred for the sake of transposed products."""


def read_contributed(graph: Graph) -> None:
    """Replace the nodes of ONNX Runtime's own domain by standard ones, in place.

    Raises
    ------
    FormatError
        Where one is used in a way that has no standard form here.
    """
    if not any(node.domain == DOMAIN for node in graph.nodes):
        return
    writer = _Writer(graph)
    for node in graph.nodes:
        if node.domain == DOMAIN:
            _Reader(node, writer).replace()
        else:
            writer.nodes.append(node)
    graph.nodes = writer.nodes


class _Writer:
    """The nodes so far, and names for more."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[NodeProto] = []
        self._names = FreshNames(graph)
        self._ranks: dict[str, int] = {}
        self._inferences = 0
        self._weights: dict[tuple, str] = {}
        stored = sum(c.array.nbytes for c in graph.constants.values() if c.array is not None)
        self._budget = SPARE_BYTES + FOLD_FACTOR * stored

    def add(self, kind: str, inputs: list[str], output: str = "", **attrs) -> str:
        """A standard node; its output's name."""
        output = output or self._names.like("contributed")
        self.nodes.append(helper.make_node(kind, inputs, [output], **attrs))
        return output

    def constant(self, value) -> str:
        name = self._names.like("contributed")
        self.graph.constants[name] = Constant(np.asarray(value))
        return name

    def array(self, name: str) -> np.ndarray | None:
        held = self.graph.constants.get(name)
        return None if held is None else held.array

    def weight(self, key: tuple, make: Callable[[], np.ndarray]) -> str | None:
        """A constant made from others, of which the first names are sources, once for each key;
        None where all of them would be too large."""
        if key not in self._weights:
            if self._budget < 0:
                return None
            made = np.ascontiguousarray(make())
            self._budget -= made.nbytes
            name = self._names.like("contributed")
            sources = [s for part in key[:3] if part for s in self.graph.constants[part].sources]
            self.graph.constants[name] = Constant(made, tuple(dict.fromkeys(sources)))
            self._weights[key] = name
        return self._weights[key]

    def rank(self, name: str) -> int | None:
        """How many axes a value has, where what is before it tells."""
        held = self.graph.constants.get(name)
        if held is not None:
            return len(held.value.shape)
        if name not in self._ranks and self._inferences < MAX_INFERENCES:
            self._inferences += 1
            self._ranks.update(infer_ranks(self.graph, self.nodes))
        return self._ranks.get(name)


class _Reader:
    """One node: its inputs and attributes, each asked for once, and what is left of them."""

    def __init__(self, node: NodeProto, writer: _Writer) -> None:
        self._node, self._writer = node, writer
        self._attrs: dict = {}

    def replace(self) -> None:
        convert = CONTRIBUTED[self._node.op_type]
        try:
            for attribute in self._node.attribute:
                self._attrs[attribute.name] = helper.get_attribute_value(attribute)
            convert(self, self._writer)
        except (AttributeError, OverflowError, TypeError, ValueError) as error:
            if isinstance(error, FormatError):
                raise
            raise self.refusal(f"an attribute is malformed ({error})") from None
        if self._attrs:
            raise self.refusal(f"attribute {sorted(self._attrs)[0]!r} is not supported")

    def refusal(self, reason: str) -> FormatError:
        return FormatError(f"{describe(self._node)}: {reason}")

    def attr(self, name: str, default):
        return self._attrs.pop(name, default)

    def attrs(self, names: tuple[str, ...]) -> dict:
        """Those attributes that are given."""
        return {name: self._attrs.pop(name) for name in names if name in self._attrs}

    def input(self, at: int) -> str:
        """An input's name, empty where it is left out."""
        return self._node.input[at] if at < len(self._node.input) else ""

    def inputs(self, least: int, most: int) -> list[str]:
        """All inputs, of which the first must be there; those left out are empty."""
        count = len(self._node.input)
        if not least <= count <= most or not all(self._node.input[:least]):
            raise self.refusal(f"{count} inputs: expected {least} to {most}")
        return [self.input(at) for at in range(most)]

    def output(self, at: int = 0) -> str:
        return self._node.output[at] if at < len(self._node.output) else ""

    def only_outputs(self, *places: int) -> None:
        """Refuse other outputs than these, and the first left out."""
        for at, name in enumerate(self._node.output):
            if name and at not in places:
                raise self.refusal(f"output {at} ({name!r}) is not supported")
        if not self.output():
            raise self.refusal("its first output has no name")


def _typed(writer: _Writer, value: float, like: str) -> str:
    """A number of the type of a value."""
    return writer.add("CastLike", [writer.constant(np.float64(value)), like])


# -- activations ----------------------------------------------------------------------------


def _erf_gelu(writer: _Writer, x: str, output: str) -> None:
    part = writer.add("Erf", [writer.add("Mul", [x, _typed(writer, math.sqrt(0.5), x)])])
    part = writer.add("Add", [part, _typed(writer, 1, x)])
    half = writer.add("Mul", [x, _typed(writer, 0.5, x)])
    writer.add("Mul", [half, part], output)


def _gelu(node: _Reader, writer: _Writer) -> None:
    node.only_outputs(0)
    (x,) = node.inputs(1, 1)
    _erf_gelu(writer, x, node.output())


def _bias_gelu(node: _Reader, writer: _Writer) -> None:
    node.only_outputs(0)
    _erf_gelu(writer, writer.add("Add", node.inputs(2, 2)), node.output())


def _fast_gelu(node: _Reader, writer: _Writer) -> None:
    """By a hyperbolic tangent."""
    node.only_outputs(0)
    x, bias = node.inputs(1, 2)
    x = writer.add("Add", [x, bias]) if bias else x
    cube = writer.add("Mul", [writer.add("Mul", [x, x]), x])
    cube = writer.add("Mul", [cube, _typed(writer, 0.044715, x)])
    bent = writer.add("Add", [x, cube])
    bent = writer.add("Mul", [bent, _typed(writer, math.sqrt(2 / math.pi), x)])
    part = writer.add("Add", [writer.add("Tanh", [bent]), _typed(writer, 1, x)])
    writer.add("Mul", [writer.add("Mul", [x, _typed(writer, 0.5, x)]), part], node.output())


def _quick_gelu(node: _Reader, writer: _Writer) -> None:
    node.only_outputs(0)
    (x,) = node.inputs(1, 1)
    scaled = writer.add("Mul", [x, _typed(writer, node.attr("alpha", 1.702), x)])
    writer.add("Mul", [x, writer.add("Sigmoid", [scaled])], node.output())


# -- products and norms ---------------------------------------------------------------------


def _fused_matmul(node: _Reader, writer: _Writer) -> None:
    """``alpha * A @ B``, of which either may have its axes exchanged."""
    node.only_outputs(0)
    operands = []
    for name, letter in zip(node.inputs(2, 2), "AB", strict=True):
        batch, last = node.attr(f"transBatch{letter}", 0), node.attr(f"trans{letter}", 0)
        rank = writer.rank(name) if batch or last else 0
        if rank is None:
            raise node.refusal(f"trans{letter} of a value of unknown rank ({name!r})")
        perm = list(range(rank))
        if batch and rank > 2:
            # The first axis becomes that of the rows.
            perm = [*perm[1:-1], perm[0], perm[-1]]
        if last and rank > 1:
            perm = [*perm[:-2], perm[-1], perm[-2]]
        if perm != sorted(perm):
            name = writer.add("Transpose", [name], perm=perm)
        operands.append(name)
    alpha = node.attr("alpha", 1.0)
    if alpha == 1:
        writer.add("MatMul", operands, node.output())
        return
    product = writer.add("MatMul", operands)
    writer.add("Mul", [product, _typed(writer, alpha, product)], node.output())


_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "HardSigmoid": ("alpha", "beta"),
    "LeakyRelu": ("alpha",),
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
}
"""What follows a fused product, with the names of its parameters."""


def _fused_conv(node: _Reader, writer: _Writer) -> None:
    """A convolution, another tensor added to it, and an activation."""
    node.only_outputs(0)
    x, w, bias, added = node.inputs(2, 4)
    params = list(node.attr("activation_params", []))
    kept = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    made = writer.add("Conv", [x, w, bias] if bias else [x, w], **node.attrs(kept))
    made = writer.add("Add", [made, added]) if added else made
    _activated(node, writer, made, params)


def _fused_gemm(node: _Reader, writer: _Writer) -> None:
    """A product of matrices, and an activation."""
    node.only_outputs(0)
    a, b, c = node.inputs(2, 3)
    params = [node.attr(f"activation_{name}", None) for name in ("alpha", "beta")]
    attrs = node.attrs(("alpha", "beta", "transA", "transB"))
    made = writer.add("Gemm", [a, b, c] if c else [a, b], **attrs)
    _activated(node, writer, made, [value for value in params if value is not None])


def _activated(node: _Reader, writer: _Writer, made: str, params: list[float]) -> None:
    """What follows the product of a fused node, by its attribute."""
    name = node.attr("activation", b"").decode(errors="replace")
    if name == "Clip" and len(params) == 2:
        writer.add("Clip", [made, *(_typed(writer, p, made) for p in params)], node.output())
        return
    if name and name not in _ACTIVATIONS:
        raise node.refusal(f"activation {name!r} is not supported")
    names = _ACTIVATIONS[name] if name else ()
    if len(params) != len(names):
        raise node.refusal(f"{len(params)} parameters of {name!r}: expected {len(names)}")
    writer.add(name or "Identity", [made], node.output(), **dict(zip(names, params, strict=True)))


def _skip_layer_normalization(node: _Reader, writer: _Writer) -> None:
    """The norm of a sum, which is an output as well."""
    node.only_outputs(0, 3)
    x, skip, gain, shift, bias = node.inputs(3, 5)
    total = node.output(3)
    summed = writer.add("Add", [x, skip], "" if bias else total)
    summed = writer.add("Add", [summed, bias], total) if bias else summed
    inputs = [summed, gain, shift] if shift else [summed, gain]
    epsilon = node.attr("epsilon", 1e-12)
    writer.add("LayerNormalization", inputs, node.output(), axis=-1, epsilon=epsilon)


def _matmul_n_bits(node: _Reader, writer: _Writer) -> None:
    """A product with a weight of a few bits, which becomes a constant of numbers."""
    node.only_outputs(0)
    x, packed, scales, zeros, order, bias = node.inputs(3, 6)
    if order or node.attr("weight_prepacked", 0):
        raise node.refusal("g_idx and weight_prepacked are not supported: leave them out")
    # How exact ONNX Runtime is at least; this is exact.
    node.attr("accuracy_level", 0)
    held = [writer.array(name) if name else None for name in (packed, scales, zeros)]
    for name, array in zip((packed, scales, zeros), held, strict=True):
        if name and array is None:
            raise node.refusal(f"{name!r} is no constant: B, scales and zero_points must be")
    bits, block = node.attr("bits", 4), node.attr("block_size", 0)
    shape = (node.attr("N", 0), node.attr("K", 0))
    weight = writer.weight(
        (packed, scales, zeros, bits, block, shape),
        lambda: unpacked_weight(*held, bits, block, shape).T,
    )
    if weight is None:
        raise node.refusal("the model's weights in numbers take more memory than it justifies")
    if not bias:
        writer.add("MatMul", [x, weight], node.output())
        return
    writer.add("Add", [writer.add("MatMul", [x, weight]), bias], node.output())


# -- quantised ------------------------------------------------------------------------------


def _dequantised(writer: _Writer, x: str, scale: str, zero: str) -> str:
    return writer.add("DequantizeLinear", [x, scale, zero] if zero else [x, scale])


def _quantised_by(kind: str, count: int, names: tuple[str, ...] = ()) -> Callable:
    """An operator on numbers whose inputs and output are quantised, each by a scale of its own."""

    def convert(node: _Reader, writer: _Writer) -> None:
        node.only_outputs(0)
        given = node.inputs(3 * count + 1, 3 * count + 2)
        operands = [_dequantised(writer, *given[3 * at : 3 * at + 3]) for at in range(count)]
        attrs = node.attrs(names)
        if kind == "Softmax" and node.attr("opset", 0) < 13:
            raise node.refusal("a softmax as before opset 13 is not supported")
        if kind == "GlobalAveragePool" and node.attr("channels_last", 0):
            raise node.refusal("channels_last is not supported: expected channels first")
        made = writer.add(kind, operands, **attrs)
        scale, zero = given[3 * count :]
        if not zero:
            # Without one the output would be uint8, whatever the inputs are.
            raise node.refusal("it has no zero point of its output: give one, which may be 0")
        writer.add("QuantizeLinear", [made, scale, zero], node.output())

    return convert


def _qgemm(node: _Reader, writer: _Writer) -> None:
    """A product of quantised matrices with a bias of integers, to numbers where the output has no
    scale."""
    node.only_outputs(0)
    a, a_scale, a_zero, b, b_scale, b_zero, bias, y_scale, y_zero = node.inputs(6, 9)
    a = writer.add("Transpose", [a], perm=[1, 0]) if node.attr("transA", 0) else a
    b = writer.add("Transpose", [b], perm=[1, 0]) if node.attr("transB", 0) else b
    made = writer.add("MatMulInteger", [a, b, a_zero, b_zero])
    made = writer.add("Add", [made, bias]) if bias else made
    made = writer.add("CastLike", [made, a_scale])
    factor = writer.add("Mul", [a_scale, b_scale])
    factor = writer.add("Mul", [factor, _typed(writer, node.attr("alpha", 1.0), factor)])
    if bool(y_scale) != bool(y_zero):
        raise node.refusal("its output has a scale or a zero point alone: give both or none")
    if not y_scale:
        writer.add("Mul", [made, factor], node.output())
        return
    made = writer.add("Mul", [made, factor])
    writer.add("QuantizeLinear", [made, y_scale, y_zero], node.output())


CONTRIBUTED: dict[str, Callable[[_Reader, _Writer], None]] = {
    "BiasGelu": _bias_gelu,
    "FastGelu": _fast_gelu,
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_matmul,
    "Gelu": _gelu,
    "MatMulNBits": _matmul_n_bits,
    "QGemm": _qgemm,
    "QLinearAdd": _quantised_by("Add", 2),
    "QLinearGlobalAveragePool": _quantised_by("GlobalAveragePool", 1),
    "QLinearLeakyRelu": _quantised_by("LeakyRelu", 1, ("alpha",)),
    "QLinearMul": _quantised_by("Mul", 2),
    "QLinearSigmoid": _quantised_by("Sigmoid", 1),
    "QLinearSoftmax": _quantised_by("Softmax", 1, ("axis",)),
    "QuickGelu": _quick_gelu,
    "SkipLayerNormalization": _skip_layer_normalization,
}
"""By operator."""
