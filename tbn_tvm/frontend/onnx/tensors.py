"""Tensors of an ONNX file as NumPy arrays, wherever their bytes lie."""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tbn_tvm.errors import FormatError
from tbn_tvm.frontend.onnx.limits import MAX_ELEMENTS, MAX_RANK

DTYPES = frozenset(
    [
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "bfloat16", "float32", "float64"),
    ]
)
"""NumPy's names of the element types that compiled models compute with."""


_PACKED_BITS = {
    **dict.fromkeys((TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1), 4),
    **dict.fromkeys((TensorProto.INT2, TensorProto.UINT2), 2),
}
"""Of element types of which several share a byte."""

_STORED = DTYPES | {
    *("int4", "uint4", "int2", "uint2", "float4_e2m1fn"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
}
"""Element types of external data: those of constants that are dequantised, too."""


class TensorReader:
    """Reads the tensors of one model.

    Parameters
    ----------
    folder : Path, optional
        Where external data lies: the model file's folder. None refuses external data.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._sizes: dict[Path, int] = {}
        self._read = 0

    def read(self, tensor: TensorProto, where: str) -> np.ndarray:
        """The tensor's value; its bytes must be those its shape and type ask for.

        Raises
        ------
        FormatError
            Where they are not, or external data is missing, short or outside the folder.
        """
        dims = check_dims(tensor.dims, where)
        if tensor.data_type not in helper.get_all_tensor_dtypes():
            raise FormatError(f"{where}: unknown element type {tensor.data_type}")
        if tensor.data_type == TensorProto.STRING:
            raise FormatError(f"{where}: strings cannot be compiled")
        if tensor.HasField("segment"):
            raise FormatError(f"{where}: segmented tensors are not supported")
        if tensor.data_location == TensorProto.EXTERNAL:
            return self._external(tensor, dims, where)
        stored = _stored_values(tensor)
        # Types of 2 and 4 bits are packed; nothing is packed tighter.
        if math.prod(dims) > 4 * stored:
            raise FormatError(
                f"{where}: the data of shape {dims} is missing: {stored} bytes or values stored"
            )
        try:
            return np.asarray(numpy_helper.to_array(tensor)).reshape(dims)
        except Exception as error:  # whatever NumPy raises on bytes of another length
            raise FormatError(f"{where}: the data does not match shape {dims} ({error})") from None

    def _external(self, tensor: TensorProto, dims: tuple[int, ...], where: str) -> np.ndarray:
        facts = {entry.key: entry.value for entry in tensor.external_data}
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
        bits = _PACKED_BITS.get(tensor.data_type, 8 * dtype.itemsize)
        expected = math.ceil(math.prod(dims) * bits / 8)
        try:
            offset = int(facts.get("offset", 0))
            length = int(facts.get("length", expected))
        except ValueError:
            raise FormatError(f"{where}: offset or length of external data is no number") from None
        if str(dtype) not in _STORED:
            raise FormatError(f"{where}: external data of type {dtype} is not supported")
        if offset < 0 or length != expected:
            raise FormatError(
                f"{where}: external data of {length} bytes at {offset}: expected {expected} bytes "
                f"for {dtype} {dims}"
            )
        path = self._path(facts.get("location", ""), where)
        if offset + length > self._sizes[path]:
            raise FormatError(
                f"{where}: external data ends at byte {offset + length}, and {path.name} has "
                f"{self._sizes[path]}"
            )
        # One stretch may serve several tensors, but not without end.
        self._read += length
        if self._read > 4 * sum(self._sizes.values()):
            raise FormatError(f"{where}: tensors share external data more often than is sensible")
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(length)
        if len(content) != length:
            raise FormatError(f"{where}: {path.name} became shorter while it was read")
        if str(dtype) not in DTYPES:
            held = TensorProto(data_type=tensor.data_type, dims=dims, raw_data=content)
            return np.asarray(numpy_helper.to_array(held)).reshape(dims)
        return np.frombuffer(content, dtype.newbyteorder("<")).astype(dtype).reshape(dims)

    def _path(self, location: str, where: str) -> Path:
        """A regular file in the model's own folder, reached through no link."""
        if self._folder is None:
            raise FormatError(f"{where}: external data of a model that was not read from a file")
        parts = location.replace("\\", "/").split("/")
        if (
            not location
            or "\0" in location
            or os.path.isabs(location)
            or ":" in parts[0]
            or ".." in parts
        ):
            raise FormatError(
                f"{where}: external data at {location!r}: expected a file in the model's folder"
            )
        path = self._folder
        for part in parts:
            path = path / part
            if path.is_symlink():
                raise FormatError(
                    f"{where}: external data at {location!r} is a link; copy the file there"
                )
        try:
            status = path.stat()
        except OSError as error:
            raise FormatError(
                f"{where}: external data {location!r} cannot be read: {error.strerror}"
            ) from None
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(f"{where}: external data at {location!r} is no regular file")
        self._sizes[path] = status.st_size
        return path


def check_dims(dims, where: str) -> tuple[int, ...]:
    """A constant's shape as a tuple, refused where no memory could hold it."""
    shape = tuple(int(extent) for extent in dims)
    if len(shape) > MAX_RANK or any(e < 0 for e in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise FormatError(
            f"{where} has shape {shape}: expected at most {MAX_RANK} axes, none negative, and "
            f"{MAX_ELEMENTS:,} elements"
        )
    return shape


def _stored_values(tensor: TensorProto) -> int:
    fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
    typed = sum(len(getattr(tensor, field)) for field in fields)
    return len(tensor.raw_data) if tensor.HasField("raw_data") else typed
