"""OneHot, with values of any type."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

MAX_DEPTH = 2**20
"""Classes: a vocabulary has a quarter of that."""


def one_hot(_bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    """The second value where an index is that of the place, else the first.

    TVM's converter takes the type of the values from Python's, and one element for no number.
    """
    indices, depth, values = inputs
    if not isinstance(depth, tvm.ir.GenericConst):
        raise ValueError("depth must be constant: it is an extent of the output")
    count = int(depth.value.numpy().reshape(-1)[0])
    if not 1 <= count <= MAX_DEPTH:
        raise ValueError(f"depth {count}: expected 1 to {MAX_DEPTH}")
    rank = len(indices.ty.shape.values) + 1
    axis = attrs.get("axis", -1)
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} of {rank}")
    axis %= rank
    indices = relax.op.astype(indices, "int64")
    beyond = relax.op.add(indices, relax.const(count, "int64"))
    indices = relax.op.where(relax.op.less(indices, relax.const(0, "int64")), beyond, indices)
    places = np.arange(count).reshape(count, *[1] * (rank - 1 - axis))
    hit = relax.op.equal(relax.op.expand_dims(indices, axis), relax.const(places, "int64"))
    off, on = (relax.op.strided_slice(values, [0], [at], [at + 1]) for at in (0, 1))
    return relax.op.where(hit, on, off)
