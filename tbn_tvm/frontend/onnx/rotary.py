"""RotaryEmbedding (opset 23 and newer): pairs of elements turned by angles of their place."""

from __future__ import annotations

from tvm import relax
from tvm import tirx as tir

from tbn_tvm.frontend.onnx.operands import cast, exact, shown


def rotary_embedding(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    """Turn the leading elements of each head; 16-bit floats are computed in float32.

    Raises
    ------
    ValueError
        Where the width is no multiple of the heads, or the caches are of another width.
    """
    emit = bb.emit
    x, cos, sin, places = (inputs[i] for i in range(4))
    dtype, shape = x.ty.dtype.dtype, list(x.ty.shape.values)
    if len(shape) not in (3, 4):
        raise ValueError(f"an input of {len(shape)} axes: expected 3 or 4")
    if len(shape) == 3:
        batch, rows, width = shape
        heads = attrs.get("num_heads", 0)
        if heads < 1 or not isinstance(width, tir.IntImm) or int(width) % heads:
            raise ValueError(
                f"a width of {shown(width)} in {heads} heads: expected a fixed multiple"
            )
        x = emit(relax.op.reshape(x, [batch, rows, heads, int(width) // heads]))
        x = emit(relax.op.permute_dims(x, [0, 2, 1, 3]))
    size = x.ty.shape.values[3]
    turned = attrs.get("rotary_embedding_dim", 0) or size
    if not isinstance(size, tir.IntImm) or not 0 < int(turned) <= int(size) or int(turned) % 2:
        raise ValueError(
            f"{shown(turned)} elements to turn of {shown(size)}: expected an even number of them"
        )
    turned, size = int(turned), int(size)
    x = exact(emit, x)
    cos, sin = (_angles(emit, c, places, turned, x.ty.dtype.dtype) for c in (cos, sin))
    step = 2 if attrs.get("interleaved", 0) else 1
    half = turned // 2
    bounds = ((0, turned), (1, turned)) if step == 2 else ((0, half), (half, turned))
    a, b = (emit(relax.op.strided_slice(x, [3], [low], [high], [step])) for low, high in bounds)
    real = emit(relax.op.subtract(emit(cos * a), emit(sin * b)))
    imaginary = emit(relax.op.add(emit(sin * a), emit(cos * b)))
    if step == 2:
        pairs = emit(relax.op.stack([real, imaginary], 4))
        result = emit(relax.op.reshape(pairs, [*x.ty.shape.values[:3], turned]))
    else:
        result = emit(relax.op.concat([real, imaginary], 3))
    if turned < size:
        rest = emit(relax.op.strided_slice(x, [3], [turned], [size]))
        result = emit(relax.op.concat([result, rest], 3))
    if len(shape) == 3:
        result = emit(relax.op.permute_dims(result, [0, 2, 1, 3]))
        result = emit(relax.op.reshape(result, shape))
    return relax.op.astype(result, dtype)


def _angles(emit, cache: relax.Expr, places, turned: int, dtype: str) -> relax.Expr:
    """Cosines or sines of ``(batch, 1, rows, turned / 2)``."""
    extents = cache.ty.shape.values
    width = extents[-1]
    if not isinstance(width, tir.IntImm) or 2 * int(width) != turned:
        raise ValueError(f"a cache of width {shown(width)}: expected {turned // 2}")
    if len(extents) != (3 if places is None else 2):
        raise ValueError(
            f"a cache of {len(extents)} axes: expected 2 with position_ids, and 3 without"
        )
    if places is not None:
        cache = emit(relax.op.take(cache, places, 0))
    cache = emit(relax.op.expand_dims(cache, 1))
    return cast(emit, cache, dtype)
