"""What ONNX's operators do to extents: numbers of which some are not known, or known as symbols.

Values are NumPy arrays of objects on no axis or one. An element is a number, None where it is not
known, or whatever else is added and multiplied.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

MAX_EXTENTS = 128
"""Elements of a value that is followed: shapes have sixteen at most."""

_INT64 = 7
_FARTHEST = 2**63

Divide = Callable[[object, object], object]


def compute(
    kind: str, attributes: dict, values: list[np.ndarray | None], divide: Divide
) -> np.ndarray | None:
    """A node's output where its inputs are such values.

    Parameters
    ----------
    kind : str
        The operator, as of opset 13 or newer.
    attributes : dict
        Its attributes.
    values : list of numpy.ndarray
        Its inputs, None for one left out.
    divide : callable
        Divides what is not all numbers, towards zero.

    Returns
    -------
    numpy.ndarray or None
        None where the operator is not followed, or does not do that.
    """
    rule = _RULES.get(kind)
    if rule is None or not values or values[0] is None:
        return None
    try:
        result = rule(attributes, values, divide)
    except (ValueError, IndexError, TypeError, OverflowError, ZeroDivisionError):
        return None  # malformed, which others say in words
    if result is None or result.ndim > 1 or result.size > MAX_EXTENTS:
        return None
    numbers = [element for element in result.flat if isinstance(element, int)]
    return result if all(-_FARTHEST <= number < _FARTHEST for number in numbers) else None


def takes(kind: str, at: int, dtype: str) -> bool:
    """Whether a node's input of this type is one of those values; extents are int64."""
    if kind == "Where" and at == 0:
        return dtype == "bool"
    return dtype == "int64" or (dtype == "int32" and at > 0 and kind in ("Gather", "Slice"))


def objects(elements, shape: tuple[int, ...]) -> np.ndarray:
    """An array of these elements, which may be sequences to NumPy."""
    array = np.empty(shape, object)
    for place, element in zip(np.ndindex(shape), elements, strict=True):
        array[place] = element
    return array


def _numbers(value: np.ndarray | None) -> list[int]:
    if value is None or not all(isinstance(element, int) for element in value.flat):
        raise ValueError("not all are numbers")
    return list(value.flat)


def _same(_attributes: dict, values: list, _divide: Divide) -> np.ndarray:
    return values[0]


def _cast(attributes: dict, values: list, _divide: Divide) -> np.ndarray | None:
    return values[0] if attributes.get("to") == _INT64 else None


def _concat(attributes: dict, values: list, _divide: Divide) -> np.ndarray | None:
    fits = attributes.get("axis") in (0, -1) and all(value.ndim == 1 for value in values)
    return np.concatenate(values) if fits else None


def _gather(attributes: dict, values: list, _divide: Divide) -> np.ndarray | None:
    data, indices = values
    if attributes.get("axis", 0) not in (0, -1) or data.ndim != 1:
        return None
    return objects((data[index] for index in _numbers(indices)), indices.shape)


def _slice(_attributes: dict, values: list, _divide: Divide) -> np.ndarray | None:
    data, starts, ends, axes, steps = (values + [None] * 5)[:5]
    bounds = [_numbers(starts), _numbers(ends), [1] if steps is None else _numbers(steps)]
    if axes is not None and _numbers(axes) not in ([0], [-1]):
        return None
    if data.ndim != 1 or any(len(bound) != 1 for bound in bounds):
        return None
    return data[slice(*(bound[0] for bound in bounds))]


def _reshape(attributes: dict, values: list, _divide: Divide) -> np.ndarray | None:
    shape = _numbers(values[1])
    return None if 0 in shape or len(shape) > 1 else values[0].reshape(shape)


def _squeeze(_attributes: dict, values: list, _divide: Divide) -> np.ndarray | None:
    data = values[0]
    axes = _numbers(values[1]) if len(values) > 1 and values[1] is not None else [0]
    return data.reshape(()) if data.shape == (1,) and axes in ([0], [-1]) else None


def _unsqueeze(_attributes: dict, values: list, _divide: Divide) -> np.ndarray | None:
    data, axes = values
    return data.reshape(1) if data.ndim == 0 and _numbers(axes) in ([0], [-1]) else None


def _where(_attributes: dict, values: list, _divide: Divide) -> np.ndarray:
    chosen, this, that = np.broadcast_arrays(*values)
    pairs = zip(_numbers(chosen), this.flat, that.flat, strict=True)
    return objects((a if choice else b for choice, a, b in pairs), chosen.shape)


def _elementwise(combine: Callable) -> Callable:
    def rule(_attributes: dict, values: list, divide: Divide) -> np.ndarray:
        left, right = np.broadcast_arrays(*values)
        return objects(
            (
                None if a is None or b is None else combine(a, b, divide)
                for a, b in zip(left.flat, right.flat, strict=True)
            ),
            left.shape,
        )

    return rule


def _quotient(a, b, divide: Divide):
    if not (isinstance(a, int) and isinstance(b, int)):
        return divide(a, b)
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


_RULES: dict[str, Callable] = {
    "Add": _elementwise(lambda a, b, _divide: a + b),
    "Cast": _cast,
    "Concat": _concat,
    "Div": _elementwise(_quotient),
    "Gather": _gather,
    "Identity": _same,
    "Mul": _elementwise(lambda a, b, _divide: a * b),
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _elementwise(lambda a, b, _divide: a - b),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
