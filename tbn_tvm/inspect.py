"""What a model is made of: the numbers users ask for, a row a layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
import tvm
from tvm import relax
from tvm import tirx as tir

from tbn_tvm import op
from tbn_tvm.errors import FormatError, UsageError
from tbn_tvm.relay_passes._match import constant_array, is_call
from tbn_tvm.tiling import TiledTensor

_FLOAT_PRODUCTS = ("relax.matmul", "relax.nn.conv1d", "relax.nn.conv2d")


@dataclass(frozen=True)
class LayerInfo:
    """Weights of one layer, and the products with them.

    Attributes
    ----------
    name : str
        The layer's name in the model, or its kind and number.
    kind : str
        Name of the graph operator, without namespaces.
    shape : tuple of int
        Shape of the weight.
    p, q : int or None
        Compression factor and tile length in bits; None where the layer is not tiled.
    alignment : str or None
        Alignment case.
    unique_rows : int
        Dot products computed for one input vector or output pixel (the rows, where not tiled).
    bits_per_weight : float
        Bits stored for each weight, alphas included.
    nbytes, float_bytes, binary_bytes : int
        Bytes stored; as float32; as one bit a weight plus one alpha.
    macs_dense, macs : int
        Multiply-adds of the dense product and of the unique rows, for one sample.
    scaling : int
        Multiplications by alpha that write the outputs, for one sample.
    products : tuple of int
        Which of the model's products, in the order of execution, are with these weights: several
        where a layer is called more than once, or for each step of a recurrent one. Arithmetic is
        that of all of them.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    p: int | None
    q: int | None
    alignment: str | None
    unique_rows: int
    bits_per_weight: float
    nbytes: int
    float_bytes: int
    binary_bytes: int
    macs_dense: int
    macs: int
    scaling: int
    products: tuple[int, ...] = ()

    @classmethod
    def from_dict(cls, fields: dict) -> LayerInfo:
        """The inverse of :meth:`to_dict`."""
        products = tuple(fields.get("products", ()))
        return cls(**{**fields, "shape": tuple(fields["shape"]), "products": products})

    def to_dict(self) -> dict:
        """For JSON."""
        return {**asdict(self), "shape": list(self.shape), "products": list(self.products)}


def describe_layers(
    mod: tvm.IRModule,
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    like: Sequence[LayerInfo] = (),
) -> list[LayerInfo]:
    """A row for all products in ``main`` with the same constant weights, in order of the first.

    Parameters
    ----------
    mod : tvm.IRModule
        After the recognising passes and before batch norm is folded.
    weights : mapping of str to numpy.ndarray, optional
        The source model's arrays by qualified name, from which layers take their names.
    like : sequence of LayerInfo, optional
        Rows of the same products with other weights, from which they take names and which of them
        share their weights.

    Raises
    ------
    FormatError
        Where a tiled layer's parts are not a valid tiled tensor: non-finite alphas, say.
    """
    names = _Names(weights or {}, like)
    rows: dict[tuple, LayerInfo] = {}
    values: dict[relax.Var, relax.Expr] = {}
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            values[binding.var] = binding.value
            row = _row(binding.value, binding.var, values, names)
            if row is not None:
                # One array may be the weights of a product and those of a convolution.
                key = (names.source, row.kind, row.shape)
                rows[key] = _with_product(rows.get(key), row, names.products - 1)
    return list(rows.values())


def _with_product(known: LayerInfo | None, row: LayerInfo, number: int) -> LayerInfo:
    """A row with one more product: its own first one where none is known."""
    if known is None:
        return replace(row, products=(number,))
    return replace(
        known,
        macs_dense=known.macs_dense + row.macs_dense,
        macs=known.macs + row.macs,
        scaling=known.scaling + row.scaling,
        products=(*known.products, number),
    )


def tiled_tensor(call: relax.Call) -> TiledTensor | None:
    """The weight of a tiled product with constant tile and alphas; None for other products.

    Raises
    ------
    FormatError
        Where the constants are not a valid tiled tensor.
    """
    tile, alphas = (constant_array(arg) for arg in call.args[1:3])
    if tile is None or alphas is None:
        return None
    attrs = op.attributes(call)
    rows = op.output_rows(call)
    if call.op.name == op.TILED_DENSE:
        shape = (rows, op.product_of(call).geometry.n)
    else:
        channels = int(call.args[0].ty.shape.values[1])
        shape = (rows, channels // attrs["groups"], *attrs["kernel_size"])
    return TiledTensor(tile, alphas.astype(np.float32), shape, attrs["p"])


def without(rows: list[LayerInfo], patterns: Sequence[str]) -> list[LayerInfo]:
    """The rows but those whose names match, as ``fnmatch`` has it, one of the patterns.

    Raises
    ------
    UsageError
        For a pattern that matches none, with the names there are.
    """
    names = [row.name for row in rows]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(f"no layer is called {pattern!r}; there are {', '.join(names)}")
    return [row for row in rows if not any(fnmatchcase(row.name, p) for p in patterns)]


def totals(rows: list[LayerInfo]) -> dict:
    """Sums over layers.

    ``mbit`` are millions of bits as the paper counts them: a bit a tile entry, 32 an alpha and a
    float weight; ``bits_per_weight`` is that over all weights. Bytes are whole for each tile, which
    makes up to seven bits a layer.
    """
    weights = sum(math.prod(row.shape) for row in rows)
    bits = sum(row.bits_per_weight * math.prod(row.shape) for row in rows)
    return {
        "weights": weights,
        "tiled_weights": sum(math.prod(row.shape) for row in rows if (row.p or 1) > 1),
        "mbit": bits / 1e6,
        "nbytes": sum(row.nbytes for row in rows),
        "float_bytes": sum(row.float_bytes for row in rows),
        "binary_bytes": sum(row.binary_bytes for row in rows),
        "bits_per_weight": bits / max(weights, 1),
        "macs_dense": sum(row.macs_dense for row in rows),
        "macs": sum(row.macs for row in rows),
    }


class _Names:
    """Names of layers, found by content: the graph carries values, not names.

    Attributes
    ----------
    products : int
        Products that were asked about.
    source : hashable
        What stands for the weights of the last of them: the same for the same weights.
    """

    def __init__(self, weights: Mapping[str, np.ndarray], like: Sequence[LayerInfo]) -> None:
        self._left = dict(weights)
        self._known: dict[object, tuple[str, np.ndarray]] = {}
        self._like = {
            number: (at, row.name) for at, row in enumerate(like) for number in row.products
        }
        self._counts: dict[str, int] = {}
        self.products = 0
        self.source: object = None

    def of(self, kind: str, *candidates: np.ndarray) -> str:
        """The name of the layer whose weights are, in one of several forms, these."""
        number, self.products = self.products, self.products + 1
        if number in self._like:
            self.source, name = self._like[number]
            return name
        for source, value in self._left.items():
            if any(_same(value, candidate) for candidate in candidates):
                # Equal arrays are taken in the model's order.
                name = source.rpartition(".")[0] or source
                return self._take(self._left, source, name, value)
        for source, (name, value) in self._known.items():
            if any(_same(value, candidate) for candidate in candidates):
                self.source = source
                return name
        numbered = self._counts.get(kind, 0)
        self._counts[kind] = numbered + 1
        return self._take({}, (kind, numbered), f"{kind}_{numbered}", candidates[0])

    def _take(self, left: dict, source, name: str, value: np.ndarray) -> str:
        left.pop(source, None)
        self._known[source] = (name, value)
        self.source = source
        return name


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)


def _row(value, var, values, names: _Names) -> LayerInfo | None:
    if op.is_product(value):
        return _tiled_row(value, var, names)
    if isinstance(value, relax.Call) and any(is_call(value, name) for name in _FLOAT_PRODUCTS):
        return _float_row(value, var, values, names)
    return None


def _tiled_row(call: relax.Call, var: relax.Var, names: _Names) -> LayerInfo | None:
    kind = call.op.name.split(".")[-1]
    try:
        tiled = tiled_tensor(call)
    except FormatError as error:
        name = names.of(kind, constant_array(call.args[1]))
        raise FormatError(f"layer {name!r}: {error}") from None
    if tiled is None:
        return None
    product = op.product_of(call)
    positions = _positions(var, product.geometry.m)
    return LayerInfo(
        name=names.of(kind, tiled.tile, tiled.expand()),
        kind=kind,
        shape=tiled.shape,
        p=tiled.p,
        q=tiled.q,
        alignment=tiled.alignment.value,
        unique_rows=product.groups * product.unique_rows,
        bits_per_weight=tiled.bits_per_weight,
        macs=product.macs * positions,
        scaling=product.geometry.m * product.segments * positions,
        **_sizes(tiled.shape, tiled.nbytes, positions),
    )


def _float_row(call: relax.Call, var: relax.Var, values, names: _Names) -> LayerInfo | None:
    operand = call.args[1]
    value = values.get(operand, operand)
    transposed = is_call(value, "relax.permute_dims")
    if transposed:
        value = values.get(value.args[0], value.args[0])
    dense = constant_array(value)
    if dense is None:
        return None
    shape = dense.shape
    if call.op.name == "relax.matmul":
        if dense.ndim != 2:
            return None
        shape = shape if transposed else shape[::-1]
    positions = _positions(var, shape[0])
    kind = call.op.name.split(".")[-1]
    return LayerInfo(
        name=names.of(kind, dense, dense.T),
        kind=kind,
        shape=tuple(int(extent) for extent in shape),
        p=None,
        q=None,
        alignment=None,
        unique_rows=int(shape[0]),
        bits_per_weight=8.0 * dense.itemsize,
        macs=dense.size * positions,
        scaling=0,
        **_sizes(shape, dense.nbytes, positions),
    )


def _sizes(shape: tuple[int, ...], nbytes: int, positions: int) -> dict:
    elements = math.prod(shape)
    return {
        "nbytes": int(nbytes),
        "float_bytes": 4 * elements,
        "binary_bytes": (elements + 7) // 8 + 4,
        "macs_dense": elements * positions,
    }


def _positions(var: relax.Var, rows: int) -> int:
    """Input vectors or output pixels in one sample: symbolic extents count as 1."""
    extents = [int(e) for e in var.ty.shape.values if isinstance(e, tir.IntImm)]
    return math.prod(extents) // rows
