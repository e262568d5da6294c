"""What a compiled model takes and gives, and the check of data against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tbn_tvm.errors import InputError


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor.

    Attributes
    ----------
    name : str
        As in the model.
    shape : tuple of int or str
        A string names a dimension of any size; the same name means the same size.
    dtype : str
        NumPy's name of the element type.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    @classmethod
    def from_dict(cls, fields: dict) -> TensorSpec:
        """The inverse of :meth:`to_dict`."""
        return cls(fields["name"], tuple(fields["shape"]), fields["dtype"])

    def to_dict(self) -> dict:
        """For JSON."""
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}

    def with_batch(self, size: int) -> TensorSpec:
        """The spec with every free dimension fixed to a size."""
        shape = tuple(size if isinstance(extent, str) else extent for extent in self.shape)
        return TensorSpec(self.name, shape, self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of one such tensor, free dimensions counted as 1."""
        fixed = [extent for extent in self.shape if isinstance(extent, int)]
        return int(np.prod(fixed, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} ({', '.join(map(str, self.shape))})"


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a compiled model."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @classmethod
    def from_dict(cls, fields: dict) -> Signature:
        """The inverse of :meth:`to_dict`; other entries are left alone."""
        return cls(
            tuple(TensorSpec.from_dict(spec) for spec in fields["inputs"]),
            tuple(TensorSpec.from_dict(spec) for spec in fields["outputs"]),
        )

    def to_dict(self) -> dict:
        """For JSON: the entries ``inputs`` and ``outputs``."""
        return {
            "inputs": [spec.to_dict() for spec in self.inputs],
            "outputs": [spec.to_dict() for spec in self.outputs],
        }

    def bind(self, args: tuple, named: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Put positional and named arrays in the order of the inputs, and check them.

        A mapping as the only positional argument counts as named arrays.

        Returns
        -------
        list of numpy.ndarray
            C-contiguous, an array an input.

        Raises
        ------
        InputError
            For a missing or unknown name, or another dtype or shape than the model takes.
        """
        if len(args) == 1 and isinstance(args[0], Mapping) and not named:
            args, named = (), args[0]
        expected = ", ".join(str(spec) for spec in self.inputs)
        if len(args) > len(self.inputs):
            raise InputError(f"{len(args)} inputs given: expected {expected}")
        given = dict(zip((spec.name for spec in self.inputs), args, strict=False))
        for name, value in named.items():
            if name in given or name not in {spec.name for spec in self.inputs}:
                raise InputError(f"input {name!r} is unknown or given twice: expected {expected}")
            given[name] = value
        missing = [spec.name for spec in self.inputs if spec.name not in given]
        if missing:
            raise InputError(f"input {missing[0]!r} is missing: expected {expected}")
        sizes: dict[str, int] = {}
        return [_checked(spec, given[spec.name], sizes) for spec in self.inputs]


def _checked(spec: TensorSpec, value, sizes: dict[str, int]) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(f"input {spec.name!r} is no array: {error}") from None
    if str(array.dtype) != spec.dtype:
        raise InputError(
            f"input {spec.name!r} has dtype {array.dtype}: expected {spec.dtype}; convert it, and "
            "scale it as the model was trained"
        )
    fits = array.ndim == len(spec.shape)
    for extent, size in zip(spec.shape, array.shape, strict=False):
        if isinstance(extent, str):
            fits = fits and size > 0 and sizes.setdefault(extent, size) == size
        else:
            fits = fits and size == extent
    if not fits:
        raise InputError(
            f"input {spec.name!r} has shape {array.shape}: expected "
            f"({', '.join(map(str, spec.shape))})"
            + (f" with {sizes}" if sizes and array.ndim == len(spec.shape) else "")
        )
    # Which, unlike ascontiguousarray, leaves scalars their rank.
    return np.asarray(array, order="C")
