"""The graph against ONNX's own definition of its operators."""

from __future__ import annotations

from onnx import ValueInfoProto, checker, shape_inference

from tbn_tvm.errors import FormatError
from tbn_tvm.frontend.onnx.graph import Graph, tensor_type


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
        inferred = shape_inference.infer_shapes(
            model, check_type=True, strict_mode=True, data_prop=True
        )
    except Exception as error:  # two libraries' own exceptions, and C++'s
        raise FormatError(_shortened(error)) from None
    values = (*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info)
    return {value.name: value for value in values if tensor_type(value) is not None}


def _shortened(error: Exception) -> str:
    """The library's message on one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + " ..."
