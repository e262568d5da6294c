"""Attention (opset 23 and newer): products and a softmax, over what masks and caches allow."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax
from tvm import tirx as tir

from tbn_tvm.frontend.onnx.graph import dtype_name
from tbn_tvm.frontend.onnx.operands import HALVES, cast, fixed, numbers_up_to, shown

_FLOATS = (*HALVES, "float32", "float64")
_INPUTS = 7


def attention(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    """``softmax(scale * Q K^T + bias) V`` for each head, and what else the operator returns.

    Queries of a group are rows of one product with the keys that they share, which are copied for
    no group. 16-bit floats are computed in float32. Keys that a mask takes out are selected away,
    not added to: infinities in what is masked stay harmless. A query that no key is left for gets
    zeros.

    Raises
    ------
    ValueError
        Where heads, masks or types are not what the operator defines.
    """
    q, k, v, mask, past_k, past_v, lengths = (inputs[i] for i in range(_INPUTS))
    emit = bb.emit
    dtype = _one_type(q, k, v)
    flat = q.ty.ndim == 3
    q, k, v = _by_heads(emit, q, k, v, attrs)
    past = 0
    if past_k is not None or past_v is not None:
        if past_k is None or past_v is None or lengths is not None:
            raise ValueError("past_key and past_value go together, and without nonpad_kv_seqlen")
        past = past_k.ty.shape.values[2]
        k, v = emit(relax.op.concat([past_k, k], 2)), emit(relax.op.concat([past_v, v], 2))
    batch, heads, rows, size = q.ty.shape.values
    groups, keys = k.ty.shape.values[1:3]
    exact = "float32" if dtype in HALVES else dtype
    scores = emit(
        relax.op.matmul(
            emit(relax.op.reshape(cast(emit, q, exact), _grouped(q, groups))),
            emit(relax.op.permute_dims(cast(emit, k, exact), [0, 1, 3, 2])),
        )
    )
    scores = emit(relax.op.reshape(scores, [batch, heads, rows, keys]))
    scores = emit(relax.op.multiply(scores, relax.const(_scale(attrs, size), exact)))
    stages = [scores]
    cap = attrs.get("softcap", 0.0)
    if cap < 0:
        raise ValueError(f"softcap {cap:g}: expected none, or a positive one")
    if cap:
        factor = relax.const(cap, exact)
        scores = emit(relax.op.multiply(emit(relax.op.tanh(emit(scores / factor))), factor))
    stages.append(scores)
    bias, allowed = _mask(emit, mask, keys, dtype)
    places = _places(emit, rows, keys, past, lengths, attrs)
    allowed = places if allowed is None else _both(emit, allowed, places)
    none_left = _without_keys(emit, bias, allowed)
    if bias is not None:
        scores = emit(relax.op.add(scores, cast(emit, bias, exact)))
    if allowed is not None:
        scores = emit(relax.op.where(allowed, scores, relax.const(-np.inf, exact)))
    stages.append(scores)
    weights = _softmax(emit, scores, attrs, exact)
    if none_left is not None:
        weights = emit(relax.op.where(none_left, relax.const(0, exact), weights))
    stages.append(weights)
    product = relax.op.matmul(
        emit(relax.op.reshape(weights, _grouped(weights, groups))), cast(emit, v, exact)
    )
    y = emit(relax.op.reshape(emit(product), [batch, heads, rows, v.ty.shape.values[3]]))
    if flat:
        y = emit(relax.op.permute_dims(y, [0, 2, 1, 3]))
        y = emit(relax.op.reshape(y, [batch, rows, heads * v.ty.shape.values[3]]))
    mode = attrs.get("qk_matmul_output_mode", 0)
    if not 0 <= mode < len(stages):
        raise ValueError(f"qk_matmul_output_mode {mode}: expected 0 to {len(stages) - 1}")
    return relax.Tuple([cast(emit, y, dtype), k, v, cast(emit, stages[mode], dtype)])


def _one_type(*values: relax.Expr) -> str:
    types = {value.ty.dtype.dtype for value in values}
    if len(types) != 1 or not types <= set(_FLOATS):
        raise ValueError(
            f"queries, keys and values of {', '.join(sorted(types))}: expected all of one of "
            f"{', '.join(_FLOATS)}"
        )
    return types.pop()


def _by_heads(emit, q, k, v, attrs: dict) -> list[relax.Expr]:
    """Queries, keys and values as ``(batch, heads, sequence, size)``."""
    counts = attrs.get("q_num_heads"), attrs.get("kv_num_heads"), attrs.get("kv_num_heads")
    ranks = [value.ty.ndim for value in (q, k, v)]
    if ranks not in ([3] * 3, [4] * 3):
        raise ValueError(f"queries, keys and values of {ranks} axes: expected all of 3 or of 4")
    split = []
    for value, count, what in zip((q, k, v), counts, ("queries", "keys", "values"), strict=True):
        batch, *extents = value.ty.shape.values
        if value.ty.ndim == 3:
            length, width = extents
            if not count or count < 0 or not isinstance(width, tir.IntImm) or int(width) % count:
                raise ValueError(
                    f"{what} of width {shown(width)} in {count} heads: expected a fixed multiple "
                    "of q_num_heads and kv_num_heads"
                )
            value = emit(relax.op.reshape(value, [batch, length, count, int(width) // count]))
            value = emit(relax.op.permute_dims(value, [0, 2, 1, 3]))
        elif count is not None and count != fixed(extents[0], f"heads of {what}"):
            raise ValueError(
                f"{what} of {shown(extents[0])} heads, and an attribute that says {count}"
            )
        split.append(value)
    heads, groups, others = (fixed(value.ty.shape.values[1], "heads") for value in split)
    if groups != others or heads % groups:
        raise ValueError(
            f"{heads} heads of queries, {groups} of keys and {others} of values: expected as many "
            "of values as of keys, and a multiple of those of queries"
        )
    return split


def _grouped(value: relax.Expr, groups) -> list:
    """The shape where queries of one group follow one another."""
    batch, heads, rows, width = value.ty.shape.values
    return [batch, groups, int(heads) // int(groups) * rows, width]


def _scale(attrs: dict, size) -> float:
    scale = attrs.get("scale")
    if scale is None:
        return 1 / math.sqrt(fixed(size, "elements of a head"))
    if not 0 <= scale < math.inf:
        raise ValueError(f"scale {scale:g}: expected none, or a finite one that is not negative")
    return scale


def _mask(emit, mask, keys, dtype: str) -> tuple[relax.Expr | None, relax.Expr | None]:
    """What a mask adds, and what it allows; keys beyond a shorter one are not allowed."""
    if mask is None:
        return None, None
    kind = mask.ty.dtype.dtype
    if kind not in ("bool", dtype):
        raise ValueError(f"a mask of {kind}: expected bool, or {dtype} as the queries have")
    if not 1 <= mask.ty.ndim <= 4:
        raise ValueError(f"a mask of {mask.ty.ndim} axes: expected 1 to 4")
    *leading, width = mask.ty.shape.values
    if all(isinstance(extent, tir.IntImm) for extent in (width, keys)):
        if int(width) == 1 < int(keys):
            raise ValueError(
                f"a mask with one place for {int(keys)} keys, which ONNX pads and others "
                "broadcast: expand it"
            )
        if int(width) < int(keys):
            rest = relax.const(False if kind == "bool" else -np.inf, kind)
            rest = emit(relax.op.broadcast_to(rest, [*leading, int(keys) - int(width)]))
            mask = emit(relax.op.concat([mask, rest], mask.ty.ndim - 1))
    return (None, mask) if kind == "bool" else (mask, None)


def _places(emit, rows, keys, past, lengths, attrs: dict) -> relax.Expr | None:
    """Which keys queries see by where they are: of the past, in the window, and no padding."""
    causal = attrs.get("is_causal", 0)
    left, right = (attrs.get(f"{side}_window_size", -1) for side in ("left", "right"))
    if min(left, right) < -1 or causal not in (0, 1):
        raise ValueError(f"windows of {left} and {right}: expected -1 or more")
    if not causal and left < 0 and right < 0 and lengths is None:
        return None
    key = numbers_up_to(emit, keys, [1, keys])
    allowed = None
    if lengths is not None:
        length = emit(relax.op.reshape(lengths, [lengths.ty.shape.values[0], 1, 1, 1]))
        allowed = emit(relax.op.less(key, length))
        offset = emit(relax.op.subtract(length, _number(emit, rows)))
    else:
        offset = _number(emit, past)
    place = emit(relax.op.add(numbers_up_to(emit, rows, [rows, 1]), offset))
    bounds = [relax.op.less_equal(key, place)] if causal else []
    if right >= 0:
        bounds.append(relax.op.less_equal(key, emit(relax.op.add(place, _number(emit, right)))))
    if left >= 0:
        last = emit(relax.op.subtract(place, _number(emit, left)))
        bounds.append(relax.op.greater_equal(key, last))
    for bound in bounds:
        allowed = _both(emit, emit(bound), allowed)
    return allowed


def _both(emit, one: relax.Expr, other: relax.Expr | None) -> relax.Expr:
    return one if other is None else emit(relax.op.logical_and(one, other))


def _number(emit, value) -> relax.Expr:
    if isinstance(value, (int, tir.IntImm)):
        return relax.const(int(value), "int64")
    return emit(relax.op.shape_to_tensor(relax.ShapeExpr([value])))


def _without_keys(emit, bias, allowed) -> relax.Expr | None:
    """Queries that no key is left for; None where there can be none."""
    if bias is None and allowed is None:
        return None
    open_ = allowed
    if bias is not None:
        finite = relax.op.not_equal(bias, relax.const(-np.inf, bias.ty.dtype.dtype))
        open_ = _both(emit, emit(finite), allowed)
    # TVM has no maximum of bool.
    most = emit(relax.op.max(emit(relax.op.astype(open_, "int8")), -1, keepdims=True))
    return emit(relax.op.equal(most, relax.const(0, "int8")))


def _softmax(emit, scores: relax.Expr, attrs: dict, exact: str) -> relax.Expr:
    """In the precision that is asked for, if any."""
    asked = attrs.get("softmax_precision")
    if asked is None:
        return emit(relax.op.nn.softmax(scores, -1))
    precision = dtype_name(asked)
    if precision not in _FLOATS:
        raise ValueError(
            f"softmax_precision {asked} ({precision}): expected 1 (float32), 10 (float16), "
            "11 (float64) or 16 (bfloat16)"
        )
    scores = cast(emit, scores, precision)
    if precision in HALVES:
        # Rounded before and after, and exact between.
        weights = emit(relax.op.nn.softmax(cast(emit, scores, "float32"), -1))
        scores = cast(emit, weights, precision)
    else:
        scores = emit(relax.op.nn.softmax(scores, -1))
    return cast(emit, scores, exact)
