"""Model-local functions: what they would grow to, and inlining them."""

from __future__ import annotations

from collections.abc import Iterable

from onnx import FunctionProto, ModelProto, NodeProto, inliner

from tbn_tvm.errors import FormatError
from tbn_tvm.export.functions import is_tiled_function
from tbn_tvm.frontend.onnx.graph import STANDARD, describe, nodes_inside, subgraphs
from tbn_tvm.frontend.onnx.limits import MAX_DEPTH, MAX_NODES

_Key = tuple[str, str, str]


def inline_functions(model: ModelProto) -> ModelProto:
    """The model with all functions inlined but those of tiled layers, which are read as they are.

    Parameters
    ----------
    model : onnx.ModelProto
        Without large initialisers: the library that inlines copies everything.

    Raises
    ------
    FormatError
        Where functions are defined twice, call themselves, nest deeply or grow to too many nodes.
    """
    functions: dict[_Key, FunctionProto] = {}
    for function in model.functions:
        if _key(function) in functions:
            raise FormatError(f"function {_show(_key(function))} is defined twice")
        if function.domain in STANDARD:
            raise FormatError(f"function {function.name!r} claims a domain of ONNX itself")
        functions[_key(function)] = function
    kept = {key for key, function in functions.items() if is_tiled_function(function)}
    _check_growth(model, {key: f for key, f in functions.items() if key not in kept})
    if not functions:
        return model
    try:
        inlined = inliner.inline_selected_functions(
            model, [(domain, name) for domain, name, _overload in kept], exclude=True
        )
    except Exception as error:  # the library's errors are of no one kind
        raise FormatError(f"its functions cannot be inlined ({error})") from None
    left = {_key(function) for function in inlined.functions} - kept
    for node in nodes_inside(inlined.graph.node):
        if (node.domain, node.op_type, node.overload) in left:
            versions = {entry.domain: entry.version for entry in model.opset_import}
            raise FormatError(
                f"{describe(node)}: its function is written for other operator versions than the "
                f"model's {versions}"
            )
    return inlined


def _check_growth(model: ModelProto, functions: dict[_Key, FunctionProto]) -> None:
    """Count nodes as inlining would make them, without making them."""
    sizes: dict[_Key, int] = {}
    open_calls: list[_Key] = []

    def size_of(nodes: Iterable[NodeProto]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type, node.overload)
            total += called(key) if key in functions else 1
            total += sum(size_of(graph.node) for graph in subgraphs(node))
            if total > MAX_NODES:
                raise FormatError(
                    f"the model has more than {MAX_NODES:,} nodes once its functions are inlined"
                )
        return total

    def called(key: _Key) -> int:
        if key in sizes:
            return sizes[key]
        if key in open_calls:
            cycle = [_show(k) for k in [*open_calls[open_calls.index(key) :], key]]
            raise FormatError(f"functions call themselves: {' -> '.join(cycle)}")
        if len(open_calls) >= MAX_DEPTH:
            raise FormatError(f"functions call one another more than {MAX_DEPTH} deep")
        open_calls.append(key)
        sizes[key] = size_of(functions[key].node)
        open_calls.pop()
        return sizes[key]

    size_of(model.graph.node)
    # Functions that nothing calls are inlined into nothing, but must not be malformed either.
    for key in functions:
        called(key)


def _key(function: FunctionProto) -> _Key:
    return function.domain, function.name, function.overload


def _show(key: _Key) -> str:
    domain, name, overload = key
    return f"{domain}::{name}" + (f":{overload}" if overload else "")
