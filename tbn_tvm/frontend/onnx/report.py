"""What became of each initialiser, and why."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from onnx import NodeProto

from tbn_tvm.frontend.onnx.graph import Graph
from tbn_tvm.frontend.onnx.reading import Initialiser
from tbn_tvm.relay_passes.find_tiled_weights import explain_tiling
from tbn_tvm.tiling import TiledTensor

_WEIGHT_INPUTS = {
    **dict.fromkeys(("MatMul", "Gemm", "Conv"), (1,)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2)),
}


@dataclass(frozen=True)
class InitialiserReport:
    """A line of the report.

    Attributes
    ----------
    name : str
        The initialiser's name.
    shape : tuple of int
        As stored.
    dtype : str
        As stored.
    nbytes : int
        As stored, bytes.
    tiled : bool
        Whether it became (part of) a tiled layer.
    reason : str
        Where it went, or why it is not tiled.
    p, q : int or None
        Compression factor and tile length in bits, where tiled.
    alignment : str or None
        Alignment case, where tiled.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    tiled: bool
    reason: str
    p: int | None = None
    q: int | None = None
    alignment: str | None = None

    def to_dict(self) -> dict:
        """For JSON."""
        return {**asdict(self), "shape": list(self.shape)}


def report_initialisers(graph: Graph, initialisers: list[Initialiser]) -> list[InitialiserReport]:
    """A line for each initialiser, in the file's order.

    Parameters
    ----------
    graph : Graph
        The prepared graph, constants folded and dead code removed.
    initialisers : list of Initialiser
        What the file stores.
    """
    uses: dict[str, list[tuple[NodeProto, int]]] = {}
    for node in graph.nodes:
        for at, name in enumerate(node.input):
            uses.setdefault(name, []).append((node, at))
    outputs = {output.name for output in graph.outputs}
    found: dict[str, tuple[TiledTensor | None, str]] = {}
    rows = []
    for stored in initialisers:
        made = [name for name, c in graph.constants.items() if stored.name in c.sources]
        lines = [
            _line(name, stored, graph, _users(name, uses), name in outputs, found) for name in made
        ]
        # A tiled use says more than another; the rest are told beside it.
        lines.sort(key=lambda line: line[0] is None)
        tiled = lines[0][0] if lines else None
        reason = "; ".join(dict.fromkeys(text for _tiled, text in lines)) or "nothing uses it"
        if stored.default:
            reason += "; it is the default of an input, which compiling fixes"
        rows.append(
            InitialiserReport(
                stored.name,
                stored.shape,
                stored.dtype,
                stored.nbytes,
                tiled is not None,
                reason,
                *((tiled.p, tiled.q, tiled.alignment.value) if tiled is not None else ()),
            )
        )
    return rows


def _users(name: str, uses: dict[str, list[tuple[NodeProto, int]]]) -> list[tuple[NodeProto, int]]:
    """Who takes a value, also once it has the type of the data: that changes no tiling."""
    found, waiting = [], [name]
    while waiting:
        for node, at in uses.get(waiting.pop(), []):
            if node.op_type == "CastLike" and at == 0:
                waiting.append(node.output[0])
            else:
                found.append((node, at))
    return found


def _line(
    name: str,
    stored: Initialiser,
    graph: Graph,
    users: list[tuple[NodeProto, int]],
    is_output: bool,
    found: dict[str, tuple[TiledTensor | None, str]],
) -> tuple[TiledTensor | None, str]:
    """What one constant made from an initialiser became: its tiling, and words on it."""
    constant = graph.constants[name]
    if isinstance(constant.value, TiledTensor):
        return constant.value, "stored as bits and alphas"
    products = [(node, at) for node, at in users if at in _WEIGHT_INPUTS.get(node.op_type, ())]
    others = [f"input {at} of {n.op_type}" for n, at in users if (n, at) not in products]
    others += ["an output"] if is_output else []
    if not products:
        return None, f"not the weight of a product: {', '.join(dict.fromkeys(others))}"
    if name not in found:
        found[name] = _tiling(products[0][0], constant.array)
    tiled, reason = found[name]
    words = [f"not tiled: {reason}"]
    if tiled is not None:
        count = len(products)
        words = ["tiled" if count == 1 else f"tiled in {count} products"]
        main = constant.sources[0]
        if main != stored.name:
            words = [f"folded into {main!r}, which is tiled"]
    if others:
        words.append(f"shared with {', '.join(dict.fromkeys(others))}, where it stays dense")
    return tiled, "; ".join(words)


def _tiling(node: NodeProto, array: np.ndarray) -> tuple[TiledTensor | None, str]:
    """The tiling of a product's weight, output features or channels first."""
    if node.op_type == "Conv":
        if array.ndim not in (3, 4):
            return None, f"a convolution over {array.ndim - 2} axes stays dense"
        return explain_tiling(array)
    if node.op_type in ("LSTM", "GRU", "RNN"):
        if len(array) != 1:
            return None, "the weights of both directions are looked at one by one"
        return explain_tiling(array[0])
    rows = array.reshape(array.shape[-2:]) if _is_matrix(array) else None
    if rows is None:
        return None, f"a product over {array.ndim} axes stays dense"
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return explain_tiling(np.ascontiguousarray(rows if transposed else rows.T))


def _is_matrix(array: np.ndarray) -> bool:
    return array.ndim >= 2 and math.prod(array.shape[:-2]) == 1
