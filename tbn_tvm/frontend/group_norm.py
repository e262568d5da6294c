"""Group normalisation of exported PyTorch programs."""

from __future__ import annotations

import numpy as np
from torch import fx
from tvm import relax
from tvm import tirx as tir


def group_norm(node: fx.Node, importer) -> relax.Var:
    """``native_group_norm`` with or without a scale and a shift, over any rank.

    TVM's converter fails where these are left out, and its kernel knows neither inputs of two axes
    nor bfloat16: an image without extent is as good, and so is float32.
    """
    x, scale, shift, _batch, channels, _size, groups, epsilon = importer.retrieve_args(node)
    emit, dtype = importer.block_builder.emit, str(x.ty.dtype)
    shape = list(x.ty.shape.values)
    exact = "float32" if dtype in ("float16", "bfloat16") else dtype

    def per_channel(given: relax.Expr | None, otherwise: float) -> relax.Expr:
        if given is None:
            return relax.const(np.full(int(channels), otherwise), exact)
        return emit(relax.op.astype(given, exact))

    if len(shape) == 2:
        x = emit(relax.op.reshape(x, [*shape, tir.IntImm("int64", 1)]))
    normed = emit(
        relax.op.nn.group_norm(
            emit(relax.op.astype(x, exact)),
            per_channel(scale, 1.0),
            per_channel(shift, 0.0),
            num_groups=groups,
            channel_axis=1,
            axes=list(range(2, max(len(shape), 3))),
            epsilon=epsilon,
        )
    )
    if len(shape) == 2:
        normed = emit(relax.op.reshape(normed, shape))
    return emit(relax.Tuple([emit(relax.op.astype(normed, dtype))]))
