"""Tensor maps: what the driver's ``cuTensorMapEncodeTiled`` makes for the copy engine."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

ENCODE = "runtime.cuTensorMapEncodeTiled"
"""The packed function that TVM's host code calls."""

_MAGIC = 0x50414D524F534E54
_ALIGNMENT = 64
_NO_SWIZZLE, _SWIZZLE_128 = 0, 3  # of the driver


class _TensorMap(ctypes.Structure):
    """``CUtensorMap`` of async_copies.h."""

    _fields_ = (
        ("magic", ctypes.c_uint64),
        ("base", ctypes.c_uint64),
        ("dims", ctypes.c_uint64 * 2),
        ("stride", ctypes.c_uint64),
        ("box", ctypes.c_uint32 * 2),
        ("element", ctypes.c_uint32),
        ("swizzle", ctypes.c_uint32),
        ("unused", ctypes.c_uint64 * 8),
    )


@dataclass(frozen=True, eq=False)
class TensorMap:
    """A matrix that a hand-launched kernel loads through the copy engine.

    Attributes
    ----------
    array : numpy.ndarray
        Shape ``(rows, columns)``.
    box : tuple of int
        Columns and rows of one load: the contiguous dimension comes first, as in the driver.
    swizzle : bool
        The 128-byte swizzle.
    """

    array: np.ndarray
    box: tuple[int, int]
    swizzle: bool = False

    def encoded(self, address: int) -> tuple[ctypes.c_void_p, object]:
        """Where the map lies, of the matrix at an address, and what keeps it there."""
        memory = ctypes.create_string_buffer(ctypes.sizeof(_TensorMap) + _ALIGNMENT)
        at = -(-ctypes.addressof(memory) // _ALIGNMENT) * _ALIGNMENT
        rows, columns = self.array.shape
        numbers = (columns, rows, self.array.strides[0], *self.box, 1, 1, 0)
        swizzle = _SWIZZLE_128 if self.swizzle else _NO_SWIZZLE
        encode(at, self.array.dtype.name, 2, address, *numbers, swizzle, 0, 0)
        return ctypes.c_void_p(at), memory


def encode(at, dtype: str, rank: int, data, *numbers: int) -> None:
    """The packed function :data:`ENCODE`, for matrices.

    Parameters
    ----------
    at, data : ctypes.c_void_p or int
        Addresses of the map and of the matrix.
    dtype : str
        Of its elements.
    rank : int
        2.
    *numbers : int
        As the driver orders them: global dimensions, byte stride, box, element strides,
        interleave, swizzle, promotion to L2, fill for what is outside.
    """
    if rank != 2:
        raise NotImplementedError(f"tensor maps of rank {rank}: the emulator has matrices only")
    width, height, stride, box_width, box_height, *strides = (int(n) for n in numbers[:7])
    interleave, swizzle, _promotion, fill = (int(n) for n in numbers[7:11])
    element = 2 if str(dtype) == "bfloat16" else np.dtype(str(dtype)).itemsize
    at, data = (getattr(address, "value", address) for address in (at, data))
    _check("the map's address", at, at % _ALIGNMENT == 0)
    _check("the matrix's address", data, bool(data) and data % 16 == 0)
    _check("the row stride", stride, stride % 16 == 0 and 0 < stride < 1 << 40)
    _check("a dimension", (width, height), 0 < width <= 1 << 32 and 0 < height <= 1 << 32)
    _check("the box", (box_width, box_height), 0 < box_width <= 256 and 0 < box_height <= 256)
    _check("a box row in bytes", box_width * element, box_width * element % 16 == 0)
    _check("element strides", strides, strides == [1, 1])
    _check("interleave", interleave, interleave == 0)
    _check("the swizzle", swizzle, swizzle in (_NO_SWIZZLE, _SWIZZLE_128))
    _check("the fill", fill, fill == 0)
    if swizzle:
        _check("a swizzled box row in bytes", box_width * element, box_width * element <= 128)
    encoded = _TensorMap(
        _MAGIC,
        data,
        (ctypes.c_uint64 * 2)(width, height),
        stride,
        (ctypes.c_uint32 * 2)(box_width, box_height),
        element,
        int(swizzle == _SWIZZLE_128),
    )
    ctypes.memmove(at, ctypes.addressof(encoded), ctypes.sizeof(encoded))


def _check(what: str, value, valid: bool) -> None:
    if not valid:
        raise ValueError(f"cuTensorMapEncodeTiled would refuse {what}: {value}")
