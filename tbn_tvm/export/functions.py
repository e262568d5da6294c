"""Tiled layers in ONNX: the one definition of our domain, for the exporter and the importer.

The domain ``org.tbn_tvm``, version 1, has two functions. A model that uses them carries their
bodies (model-local functions), which are standard ONNX, so that any run time that knows functions
executes it; one that knows tiled layers reads bits and alphas off the nodes instead.

``TiledLinear(X, tile, alpha, bias?) -> Y``
    ``Y = X @ W.T + bias`` for X of shape ``(..., n)``. Attributes: ``shape`` (``[m, n]``), ``p``.
``TiledConv(X, tile, alpha, bias?) -> Y``
    ``Y = Conv(X, W, bias)``. Attributes: ``shape`` (``[m, C / group, *kernel]``), ``p``, and
    ``strides``, ``pads``, ``dilations``, ``group`` as for ``Conv``. All are required.

Inputs: ``tile``, uint8 of shape ``(ceil(q / 8),)``; ``alpha``, float32 of shape ``(p,)`` or
``(1,)``; ``bias``, of X's dtype and shape ``(m,)``, which may be left out. W is the weight that
:class:`tbn_tvm.tiling.TiledTensor` defines, its alphas rounded to X's dtype: float16, bfloat16,
float32 or float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from tbn_tvm.errors import FormatError
from tbn_tvm.tiling import TiledTensor

if TYPE_CHECKING:
    import numpy as np
    from onnx import FunctionProto, NodeProto

DOMAIN = "org.tbn_tvm"
"""Domain of the functions."""

VERSION = 1
"""Version of the domain. Another definition of a function gets another version."""

LINEAR = "TiledLinear"
CONV = "TiledConv"

FIRST_OPSET = 17
"""The oldest version of ONNX's operators that models are written with."""

# Signs choose between alpha and -alpha, so nothing is multiplied and alphas stay exact. All this
# is in float32 because run times lack half-precision kernels of Where; the cast comes last.
_WEIGHT = """
    extents = Constant <value_ints: ints = @shape> ()
    uses = Constant <value_int: int = @p> ()
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    rest = Constant <value_ints = [-1]> ()
    elements = ReduceProd <keepdims = 1> (extents)
    length = Div (elements, uses)
    bytes = Unsqueeze (tile, one)
    places = Constant <value = uint8[8] {0, 1, 2, 3, 4, 5, 6, 7}> ()
    shifted = BitShift <direction = "RIGHT"> (bytes, places)
    two = Constant <value = uint8[1] {2}> ()
    digits = Mod (shifted, two)
    stream = Reshape (digits, rest)
    bits = Slice (stream, zero, length)
    positive = Cast <to = 9> (bits)
    times = Unsqueeze (uses, zero)
    scales = Expand (alpha, times)
    plus = Unsqueeze (scales, one)
    minus = Neg (plus)
    blocks = Where (positive, plus, minus)
    dense = Reshape (blocks, extents)
    weight = CastLike (dense, X)
"""

# Gemm and Conv take a bias or none; MatMul and Add would need a function for either case.
_LINEAR = f"""
TiledLinear <shape, p> (X, tile, alpha, bias) => (Y) {{
    {_WEIGHT}
    end = Constant <value_ints = [2]> ()
    features = Slice (extents, one, end)
    matrix = Concat <axis = 0> (rest, features)
    rows = Reshape (X, matrix)
    product = Gemm <transB = 1> (rows, weight, bias)
    leading = Shape <end = -1> (X)
    outputs = Slice (extents, zero, one)
    result = Concat <axis = 0> (leading, outputs)
    Y = Reshape <allowzero = 1> (product, result)
}}
"""

_CONV = f"""
TiledConv <shape, p, strides, pads, dilations, group> (X, tile, alpha, bias) => (Y) {{
    {_WEIGHT}
    Y = Conv <
        strides: ints = @strides,
        pads: ints = @pads,
        dilations: ints = @dilations,
        group: int = @group
    > (X, weight, bias)
}}
"""

_DOCS = {
    LINEAR: "X @ W.T + bias for a tiled W: W[e] = alpha[e // q] * t[e % q] over the flat index e, "
    "q = prod(shape) / p, t[k] = +1 where bit k % 8 of tile[k // 8] is set and -1 elsewhere "
    "(Tiled Bit Networks, arXiv:2407.12075).",
    CONV: "Conv(X, W, bias) for a tiled W, which TiledLinear describes.",
}


@cache
def _function(name: str, opset: int) -> FunctionProto:
    from onnx import parser

    header = f'<opset_import: ["": {opset}], domain: "{DOMAIN}">'
    function = parser.parse_function(header + {LINEAR: _LINEAR, CONV: _CONV}[name])
    function.doc_string = _DOCS[name]
    return function


def tiled_function(name: str, opset: int) -> FunctionProto:
    """A function's definition.

    Parameters
    ----------
    name : {"TiledLinear", "TiledConv"}
        Which function.
    opset : int
        Version of ONNX's operators that the body imports, at least :data:`FIRST_OPSET`; the
        model's own, since run times want one version throughout.

    Returns
    -------
    onnx.FunctionProto
        The caller's own copy.
    """
    from onnx import FunctionProto

    copy = FunctionProto()
    copy.CopyFrom(_function(name, opset))
    return copy


def is_tiled_function(function: FunctionProto) -> bool:
    """Whether a function in a model is the one defined here, under whatever opset.

    One of our domain and name with another body is another function: whoever reads the model must
    go by its body. Comments and metadata do not count.
    """
    if function.domain != DOMAIN or function.name not in (LINEAR, CONV):
        return False
    opsets = [entry.version for entry in function.opset_import if entry.domain in ("", "ai.onnx")]
    # Past any opset there is, versions are a hostile file's: no definition is built for each.
    if len(opsets) != 1 or len(function.opset_import) != 1 or not FIRST_OPSET <= opsets[0] < 1000:
        return False
    return _content(function) == _content(_function(function.name, opsets[0]))


def _content(function: FunctionProto) -> bytes:
    from onnx import FunctionProto

    copy = FunctionProto()
    copy.CopyFrom(function)
    for field in ("opset_import", "doc_string", "metadata_props"):
        copy.ClearField(field)
    for node in copy.node:
        for field in ("name", "doc_string", "metadata_props"):
            node.ClearField(field)
    return copy.SerializeToString(deterministic=True)


@dataclass(frozen=True)
class TiledNode:
    """What a node of the domain says.

    Attributes
    ----------
    weight : TiledTensor
        Its weight: ``(m, n)``, or ``(m, C / group, *kernel)``.
    strides, pads, dilations : tuple of int
        As for ONNX's ``Conv``, ``pads`` two values an axis: all the begins, then all the ends.
        Empty for a linear layer.
    group : int
        Groups of a convolution.
    """

    weight: TiledTensor
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    group: int = 1


def read_tiled_node(node: NodeProto, tile: np.ndarray, alpha: np.ndarray) -> TiledNode:
    """The inverse of writing a node of the domain.

    Parameters
    ----------
    node : onnx.NodeProto
        A call of one of the functions.
    tile, alpha : numpy.ndarray
        The values of its second and third input.

    Raises
    ------
    FormatError
        Where an attribute is missing, of another type or out of range, or the parts do not make a
        tiled tensor.
    """
    where = f"node {node.name or '/'.join(node.output)!r} ({node.op_type})"
    attributes = {attribute.name: attribute for attribute in node.attribute}

    def integers(name: str, count: int | None, least: int) -> tuple[int, ...]:
        attribute = attributes.get(name)
        if attribute is None or attribute.type != attribute.INTS or attribute.ref_attr_name:
            raise FormatError(f"{where}: expected the attribute {name!r}, a list of integers")
        values = tuple(attribute.ints)
        if (count is not None and len(values) != count) or any(v < least for v in values):
            wanted = "integers" if count is None else f"{count} integers"
            raise FormatError(f"{where}: {name} = {list(values)}: expected {wanted} >= {least}")
        return values

    def integer(name: str) -> int:
        attribute = attributes.get(name)
        if attribute is None or attribute.type != attribute.INT or attribute.ref_attr_name:
            raise FormatError(f"{where}: expected the attribute {name!r}, an integer")
        if attribute.i < 1:
            raise FormatError(f"{where}: {name} = {attribute.i}: expected at least 1")
        return attribute.i

    shape = integers("shape", None if node.op_type == CONV else 2, 1)
    try:
        weight = TiledTensor(tile, alpha, shape, integer("p"))
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from None
    if node.op_type != CONV:
        return TiledNode(weight)
    rank = len(shape) - 2
    if rank < 1:
        raise FormatError(f"{where}: shape {list(shape)} is not that of a convolution's weight")
    group = integer("group")
    if shape[0] % group:
        raise FormatError(f"{where}: {group} groups do not divide {shape[0]} output channels")
    return TiledNode(
        weight,
        integers("strides", rank, 1),
        integers("pads", 2 * rank, 0),
        integers("dilations", rank, 1),
        group,
    )
