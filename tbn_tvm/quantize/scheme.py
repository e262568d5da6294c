"""How real numbers are integers: ``real = scale * (integer - zero_point)``, a pair a tensor."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import Enum

import numpy as np

MULTIPLIER_BITS = 15
"""Fixed-point multipliers are stored in 16 bits with their sign."""

ACCUMULATOR_LIMIT = 2**31 - 1


class Scheme(Enum):
    """Where zero lies."""

    AFFINE = "affine"
    """Anywhere: the whole range of the integers is used."""

    SYMMETRIC = "symmetric"
    """At 0: nothing to subtract, but what is never negative has 7 bits only."""


@dataclass(frozen=True)
class Tensor:
    """The integers of a tensor.

    Attributes
    ----------
    scale : float
        The real number that one step is worth.
    zero_point : int
        The integer that means 0.
    dtype : str
        ``int8`` or ``int16``.
    """

    scale: float
    zero_point: int
    dtype: str = "int8"

    @property
    def lowest(self) -> int:
        """The smallest integer of the dtype."""
        return int(np.iinfo(self.dtype).min)

    @property
    def highest(self) -> int:
        """The largest integer of the dtype."""
        return int(np.iinfo(self.dtype).max)

    def quantize(self, real: np.ndarray) -> np.ndarray:
        """Integers for real numbers: to nearest, ties to even, clamped to the dtype."""
        steps = np.rint(np.asarray(real, np.float64) / self.scale) + self.zero_point
        return np.clip(steps, self.lowest, self.highest).astype(self.dtype)

    def dequantize(self, integers: np.ndarray) -> np.ndarray:
        """float32 for integers."""
        return ((integers.astype(np.float64) - self.zero_point) * self.scale).astype(np.float32)

    def to_dict(self) -> dict:
        """For metadata."""
        return asdict(self)

    @classmethod
    def covering(cls, low: float, high: float, scheme: Scheme, dtype: str = "int8") -> Tensor:
        """The finest tensor that holds a range and zero."""
        low, high = min(float(low), 0.0), max(float(high), 0.0)
        info = np.iinfo(dtype)
        if scheme is Scheme.SYMMETRIC:
            # The smallest integer stays unused, so that negation is exact.
            return cls(max(-low, high, 1e-12) / info.max, 0, dtype)
        scale = max(high - low, 1e-12) / (info.max - info.min)
        zero_point = int(np.clip(np.rint(info.min - low / scale), info.min, info.max))
        return cls(scale, zero_point, dtype)


@dataclass(frozen=True)
class FixedPoint:
    """Multipliers and offsets that turn sums into outputs: ``(sum * m + offset) >> shift``.

    Attributes
    ----------
    multipliers : numpy.ndarray
        int16; what a unit of each sum is worth.
    offsets : numpy.ndarray
        int32: bias, zero point and half a step for rounding; one, or one an output row.
    shift : int
        Bits behind the point.
    """

    multipliers: np.ndarray
    offsets: np.ndarray
    shift: int

    @classmethod
    def of(cls, factors: np.ndarray, offsets: np.ndarray, bound: float) -> FixedPoint:
        """The finest multipliers that cannot overflow 32 bits.

        Parameters
        ----------
        factors : numpy.ndarray
            Real, what a unit of each sum is worth in steps of the output.
        offsets : numpy.ndarray
            Real, in steps of the output.
        bound : float
            The largest sum of magnitudes that multiplies one factor, over all its sums.
        """
        factors, offsets = np.asarray(factors, np.float64), np.asarray(offsets, np.float64)
        reach = np.abs(factors).max() * bound + np.abs(offsets).max() + 1
        shift = 30
        while shift > 0 and (
            np.rint(np.abs(factors).max() * 2.0**shift) >= 2**MULTIPLIER_BITS
            or (reach + 1) * 2.0**shift + bound >= ACCUMULATOR_LIMIT
        ):
            shift -= 1
        half = 2 ** (shift - 1) if shift else 0
        multipliers = np.rint(factors * 2.0**shift)
        offsets = np.rint(offsets * 2.0**shift) + half
        if not shift:
            # Outputs whose step is next to nothing, as of a layer that was 0 for all samples. With
            # less than asked for they leave the output's range as well, and 32 bits they do not.
            room = ACCUMULATOR_LIMIT // 2
            offsets = np.clip(offsets, -room, room)
            most = min(2**MULTIPLIER_BITS - 1, room // max(math.ceil(bound), 1))
            multipliers = np.clip(multipliers, -most, most)
        return cls(multipliers.astype(np.int16), offsets.astype(np.int32), shift)
