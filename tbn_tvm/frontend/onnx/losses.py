"""Losses: what a model is scored by, of logarithms of probabilities or of scores."""

from __future__ import annotations

from tvm import relax
from tvm import tirx as tir

from tbn_tvm.frontend.onnx.operands import exact, numbers_up_to


def _negative_log_likelihood(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    x, target, weight = (inputs[i] for i in range(3))
    return _loss(bb.emit, exact(bb.emit, x), target, weight, attrs, x.ty.dtype.dtype)


def _softmax_cross_entropy(bb, inputs, attrs: dict, _opset: int) -> relax.Expr:
    """With the logarithms of the probabilities as a second output."""
    x, target, weight = (inputs[i] for i in range(3))
    dtype = x.ty.dtype.dtype
    logs = bb.emit(relax.op.nn.log_softmax(exact(bb.emit, x), 1))
    loss = _loss(bb.emit, logs, target, weight, attrs, dtype)
    return relax.Tuple([loss, bb.emit(relax.op.astype(logs, dtype))])


def _loss(emit, x, target, weight, attrs: dict, dtype: str) -> relax.Expr:
    """What the class of each target has along axis 1, negated; a class that is none gives zero."""
    extents, kind = x.ty.shape.values, x.ty.dtype.dtype
    if len(extents) < 2 or not isinstance(extents[1], tir.IntImm):
        raise ValueError("expected scores with a fixed number of classes on axis 1")
    reduction = attrs.get("reduction", b"mean")
    if reduction not in (b"mean", b"sum", b"none"):
        raise ValueError(f"reduction {reduction.decode(errors='replace')!r} is not supported")
    along = [int(extents[1]), *[1] * (len(extents) - 2)]
    classes = numbers_up_to(emit, extents[1], along)
    target = emit(relax.op.astype(target, "int64"))
    zero = relax.const(0, kind)
    hit = emit(relax.op.equal(emit(relax.op.expand_dims(target, 1)), classes))

    def of_target(values: relax.Expr) -> relax.Expr:
        return emit(relax.op.sum(emit(relax.op.where(hit, values, zero)), 1))

    loss = emit(relax.op.negative(of_target(x)))
    weights = None
    if weight is not None:
        weights = of_target(emit(relax.op.reshape(exact(emit, weight), along)))
    ignored = attrs.get("ignore_index")
    if ignored is not None:
        counted = emit(relax.op.not_equal(target, relax.const(ignored, "int64")))
        one = relax.const(1, kind) if weights is None else weights
        weights = emit(relax.op.where(counted, one, zero))
        loss = emit(relax.op.where(counted, loss, zero))
    if weights is not None:
        loss = emit(relax.op.multiply(loss, weights))
    if reduction == b"mean" and weights is not None:
        loss = emit(relax.op.divide(emit(relax.op.sum(loss)), emit(relax.op.sum(weights))))
    elif reduction != b"none":
        loss = emit((relax.op.mean if reduction == b"mean" else relax.op.sum)(loss))
    return emit(relax.op.astype(loss, dtype))


LOSSES = {
    "NegativeLogLikelihoodLoss": _negative_log_likelihood,
    "SoftmaxCrossEntropyLoss": _softmax_cross_entropy,
}
"""Converters."""
