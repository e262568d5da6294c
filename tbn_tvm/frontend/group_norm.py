"""Normalisation over groups of channels and over instances, as PyTorch and ONNX define it.

TVM's kernels take the variance as the mean of the squares less the square of the mean, of which
nothing is left in float32 where the mean is much above the deviation, and know no float64.
"""

from __future__ import annotations

from tvm import relax
from tvm import tirx as tir


def group_norm(
    emit,
    x: relax.Expr,
    scale: relax.Expr | None,
    shift: relax.Expr | None,
    groups: int,
    epsilon: float,
) -> relax.Expr:
    """Standardise each group of channels of each example, then scale and shift each channel.

    Parameters
    ----------
    emit : callable
        Binds an expression and returns its variable.
    x : relax.Expr
        Of shape (N, channels, any axes, or none).
    scale, shift : relax.Expr, optional
        Of as many elements as there are channels.
    groups : int
        Of neighbouring channels, all of one size.
    epsilon : float
        Added to the variance.

    Returns
    -------
    relax.Expr
        Of the shape and dtype of ``x``; 16-bit floats are computed in float32.

    Raises
    ------
    ValueError
        Where there are no channels, their number is free, or it is no multiple of ``groups``.
    """
    shape = list(x.ty.shape.values)
    if len(shape) < 2:
        raise ValueError(f"groups of channels of {len(shape)} axes: expected 2 or more")
    if not isinstance(shape[1], tir.IntImm):
        raise ValueError(f"groups of a free number of channels ({shape[1]}) are not supported")
    channels = int(shape[1])
    if groups <= 0 or channels % groups:
        raise ValueError(f"{channels} channels are not {groups} groups of one size")
    apart = [shape[0], groups, channels // groups, *shape[2:]]
    unit = emit(relax.op.reshape(_exact(emit, x), apart))
    unit = _standardised(emit, unit, list(range(2, len(apart))), epsilon)
    return _scaled(emit, emit(relax.op.reshape(unit, shape)), scale, shift, x)


def instance_norm(
    emit,
    x: relax.Expr,
    scale: relax.Expr | None,
    shift: relax.Expr | None,
    axes: list[int],
    epsilon: float,
) -> relax.Expr:
    """Standardise over ``axes``, then scale and shift each channel.

    Parameters
    ----------
    emit : callable
        Binds an expression and returns its variable.
    x : relax.Expr
        With its channels along axis 1.
    scale, shift : relax.Expr, optional
        Of as many elements as there are channels.
    axes : list of int
        Not counted from the end.
    epsilon : float
        Added to the variance.

    Returns
    -------
    relax.Expr
        Of the shape and dtype of ``x``; 16-bit floats are computed in float32.
    """
    unit = _standardised(emit, _exact(emit, x), axes, epsilon)
    return _scaled(emit, unit, scale, shift, x)


def standardised_by(
    emit,
    x: relax.Expr,
    mean: relax.Expr,
    variance: relax.Expr,
    scale: relax.Expr | None,
    shift: relax.Expr | None,
    epsilon: float,
) -> relax.Expr:
    """Standardise each channel by statistics that are given, then scale and shift it.

    Parameters
    ----------
    emit : callable
        Binds an expression and returns its variable.
    x : relax.Expr
        With its channels along axis 1.
    mean, variance : relax.Expr
        Of as many elements as there are channels.
    scale, shift : relax.Expr, optional
        Likewise.
    epsilon : float
        Added to the variance.
    """
    exact = _exact(emit, x)
    dtype = exact.ty.dtype.dtype
    spread = emit(relax.op.add(emit(relax.op.astype(variance, dtype)), relax.const(epsilon, dtype)))
    less = emit(relax.op.negative(emit(relax.op.astype(mean, dtype))))
    unit = _scaled(emit, exact, None, less, exact)
    unit = _scaled(emit, unit, emit(relax.op.rsqrt(spread)), None, exact)
    return _scaled(emit, unit, scale, shift, x)


def layer_norm(
    emit,
    x: relax.Expr,
    scale: relax.Expr | None,
    shift: relax.Expr | None,
    rank: int,
    epsilon: float,
) -> relax.Expr:
    """Standardise over the last ``rank`` axes, then scale and shift each of their elements.

    Parameters
    ----------
    emit : callable
        Binds an expression and returns its variable.
    x : relax.Expr
        Of any shape.
    scale, shift : relax.Expr, optional
        Of the shape of those axes.
    rank : int
        How many they are.
    epsilon : float
        Added to the variance.

    Returns
    -------
    relax.Expr
        Of the shape and dtype of ``x``; 16-bit floats are computed in float32.
    """
    unit = _exact(emit, x)
    unit = _standardised(emit, unit, list(range(x.ty.ndim - rank, x.ty.ndim)), epsilon)
    for given, combine in ((scale, relax.op.multiply), (shift, relax.op.add)):
        if given is not None:
            unit = emit(combine(unit, emit(relax.op.astype(given, unit.ty.dtype.dtype))))
    dtype = x.ty.dtype.dtype
    return unit if unit.ty.dtype.dtype == dtype else emit(relax.op.astype(unit, dtype))


def _exact(emit, x: relax.Expr) -> relax.Expr:
    if x.ty.dtype.dtype in ("float16", "bfloat16"):
        return emit(relax.op.astype(x, "float32"))
    return x


def _standardised(emit, x: relax.Expr, axes: list[int], epsilon: float) -> relax.Expr:
    """Less its mean, over its deviation; the variance is the mean of what is squared after that."""
    centred = emit(relax.op.subtract(x, _mean(emit, x, axes)))
    variance = _mean(emit, emit(relax.op.multiply(centred, centred)), axes)
    variance = emit(relax.op.add(variance, relax.const(epsilon, x.ty.dtype.dtype)))
    return emit(relax.op.multiply(centred, emit(relax.op.rsqrt(variance))))


def _mean(emit, x: relax.Expr, axes: list[int]) -> relax.Expr:
    """Of the means along the last axis: one long sum in float32 would lose more."""
    x = emit(relax.op.mean(x, axes[-1:], keepdims=True))
    return emit(relax.op.mean(x, axes[:-1], keepdims=True)) if axes[:-1] else x


def _scaled(
    emit, unit: relax.Expr, scale: relax.Expr | None, shift: relax.Expr | None, like: relax.Expr
) -> relax.Expr:
    """``unit * scale + shift`` along axis 1, of the dtype of ``like``."""
    shape = list(unit.ty.shape.values)
    for given, combine in ((scale, relax.op.multiply), (shift, relax.op.add)):
        if given is None:
            continue
        given = emit(relax.op.reshape(given, [shape[1], *[1] * (len(shape) - 2)]))
        unit = emit(combine(unit, emit(relax.op.astype(given, unit.ty.dtype.dtype))))
    dtype = like.ty.dtype.dtype
    return unit if unit.ty.dtype.dtype == dtype else emit(relax.op.astype(unit, dtype))
