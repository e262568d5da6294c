"""The graph against ONNX's own definition of its operators."""

from __future__ import annotations

from dataclasses import replace

from onnx import NodeProto, ValueInfoProto, checker, shape_inference

from tbn_tvm.errors import FormatError
from tbn_tvm.frontend.onnx.graph import Graph, tensor_type

_PRIMES = ((7, 11, 13, 17), (19, 23, 29, 31))
"""Sizes that free dimensions are tried with, in units of 16."""


def check_graph(graph: Graph) -> dict[str, ValueInfoProto]:
    """Check names, order, attributes, types and shapes of everything.

    Returns
    -------
    dict of str to ValueInfoProto
        The type of each value as far as ONNX infers it, by name.

    Raises
    ------
    FormatError
        With what ONNX says is wrong.
    """
    model = graph.to_model()
    try:
        checker.check_model(model)
        # Without propagation of data, which makes whatever a hostile graph concatenates.
        inferred = shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception as error:  # two libraries' own exceptions, and C++'s
        raise FormatError(_shortened(error)) from None
    values = (*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info)
    return {value.name: value for value in values if tensor_type(value) is not None}


def infer_ranks(graph: Graph, nodes: list[NodeProto]) -> dict[str, int]:
    """How many axes values have that some nodes of a graph make; none where these are malformed,
    which later checks say better."""
    model = replace(graph, nodes=nodes, outputs=[]).to_model()
    try:
        checker.check_model(model)
        inferred = shape_inference.infer_shapes(model, check_type=True)
    except Exception:  # two libraries' own exceptions, and C++'s
        return {}
    types = {
        value.name: tensor_type(value)
        for value in (*inferred.graph.input, *inferred.graph.value_info)
    }
    return {
        name: len(held.shape.dim)
        for name, held in types.items()
        if held is not None and held.HasField("shape")
    }


def check_free_axes(graph: Graph) -> None:
    """Give free dimensions sizes, twice, and check again: a name alone contradicts nothing.

    Raises
    ------
    FormatError
        Where the model needs a dimension of one size that its inputs leave free.
    """
    symbols = sorted({name for name, _extent in _symbols(graph.inputs)})
    if not symbols:
        return
    for primes in _PRIMES:
        sized = replace(graph, inputs=[_copy(value) for value in graph.inputs])
        # Multiples of 16, because models split and merge axes by small factors.
        sizes = {name: 16 * primes[i % len(primes)] for i, name in enumerate(symbols)}
        for name, extent in _symbols(sized.inputs):
            extent.dim_value = sizes[name]
        try:
            check_graph(sized)
        except FormatError as error:
            raise FormatError(
                f"with free dimensions of {sizes}: {error}; fix those that cannot be free"
            ) from None


def _symbols(inputs: list[ValueInfoProto]) -> list[tuple[str, object]]:
    return [
        (extent.dim_param, extent)
        for value in inputs
        for extent in value.type.tensor_type.shape.dim
        if extent.dim_param
    ]


def _copy(value: ValueInfoProto) -> ValueInfoProto:
    copy = ValueInfoProto()
    copy.CopyFrom(value)
    return copy


def _shortened(error: Exception) -> str:
    """The library's message on one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + " ..."
