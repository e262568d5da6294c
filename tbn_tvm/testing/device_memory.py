"""NumPy arrays in host memory that TVM's host code takes for arrays of a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tvm_ffi

CUDA = 2
OPENCL = 4

ALIGNMENT = 64
"""What TVM's host code and vector loads expect of an array."""

GUARD = 1 << 20
"""Bytes on either side of an array that a kernel must not touch."""

_KINDS = {"i": 0, "u": 1, "f": 2, "b": 6}
_BFLOAT = 4
_NO_ACCESS = 0
_UNUSED = 0xFF

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class DeviceArray:
    """A copy of an array between two stretches of memory that nobody may touch.

    The array ends where the second begins, but for less than :data:`ALIGNMENT` bytes. Those, and
    the rest of the page before the array, are checked by :meth:`copy_back`.

    Parameters
    ----------
    array : numpy.ndarray
        C-contiguous.
    device_type : int
        :data:`CUDA` or :data:`OPENCL`.
    name : str
        For messages.
    protect : bool
        Touching the stretches is a fault at once; otherwise :meth:`copy_back` finds writes to them.
    """

    def __init__(self, array: np.ndarray, device_type: int, name: str, protect: bool = True):
        if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
            raise TypeError(f"{name}: a C-contiguous NumPy array is needed, not {type(array)}")
        self.array = array
        self.name = name
        room = -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        inner = -(-max(room, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(-1, inner + 2 * GUARD)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        for guard in (base, base + GUARD + inner):
            if protect and _libc.mprotect(guard, GUARD, _NO_ACCESS):
                raise OSError(ctypes.get_errno(), "mprotect failed")
        start = GUARD + inner - room
        ours = slice(GUARD, GUARD + inner) if protect else slice(None)
        everything = np.frombuffer(self._memory, np.uint8)
        everything[ours] = _UNUSED
        self._before = everything[ours.start : start]
        self._bytes = everything[start : start + array.nbytes]
        self._after = everything[start + array.nbytes : ours.stop]
        self._bytes[...] = array.reshape(-1).view(np.uint8)
        self.address = base + GUARD + inner - room
        self._device_type = device_type
        self._managed = _managed_tensor(self.address, array, device_type)

    def copy_back(self) -> None:
        """Write what the kernels left into the array."""
        size = self.array.nbytes
        if (self._after != _UNUSED).any():
            at = size + int(np.flatnonzero(self._after != _UNUSED)[0])
            raise IndexError(f"{self.name} has {size} bytes, and a kernel wrote byte {at}")
        if (self._before != _UNUSED).any():
            raise IndexError(f"{self.name}: a kernel wrote before its first byte")
        if self.array.flags.writeable:
            self.array.reshape(-1).view(np.uint8)[...] = self._bytes

    def __dlpack__(self, **_):
        new = ctypes.pythonapi.PyCapsule_New
        new.restype = ctypes.py_object
        new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self._managed), b"dltensor", None)

    def __dlpack_device__(self):
        return self._device_type, 0


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _DLManagedTensor(ctypes.Structure):
    _fields_ = (
        ("tensor", _DLTensor),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),  # null: the DeviceArray outlives the tensor
    )


def _managed_tensor(address: int, array: np.ndarray, device_type: int) -> _DLManagedTensor:
    dims = ctypes.c_int64 * max(array.ndim, 1)
    strides = [stride // array.itemsize for stride in array.strides]
    code = _BFLOAT if array.dtype.name == "bfloat16" else _KINDS.get(array.dtype.kind)
    if code is None:
        raise TypeError(f"no kernel takes arrays of {array.dtype}")
    tensor = _DLTensor(
        address,
        device_type,
        0,
        array.ndim,
        code,
        8 * array.itemsize,
        1,
        dims(*array.shape),
        dims(*strides),
        0,
    )
    return _DLManagedTensor(tensor, None, None)


def call(
    host: tvm_ffi.Module,
    entry: str,
    arrays: list,
    device_type: int,
    packed: Mapping[str, Callable],
    protect: bool = True,
) -> None:
    """Call a host function whose kernels are Python functions.

    Parameters
    ----------
    host : tvm_ffi.Module
        The compiled host code.
    entry : str
        The function.
    arrays : list
        NumPy arrays, which the call changes in place, and scalars.
    device_type : int
        What the host code expects: :data:`CUDA` or :data:`OPENCL`.
    packed : mapping of str to callable
        By the names the host code calls them by. They get addresses as ``ctypes.c_void_p``.
    protect : bool
        As :class:`DeviceArray` has it.
    """
    memory = [
        DeviceArray(value, device_type, f"argument {position}", protect)
        if isinstance(value, np.ndarray)
        else value
        for position, value in enumerate(arrays)
    ]
    raised: list[Exception] = []
    functions = {name: _recording(function, raised) for name, function in packed.items()}
    tensors = [tvm_ffi.from_dlpack(m) if isinstance(m, DeviceArray) else m for m in memory]
    with _registered({**functions, "__tvm_set_device": lambda *_: None}):
        try:
            host[entry](*tensors)
        except Exception:
            if raised:  # TVM made another type of it on its way
                raise raised[0] from None
            raise
        finally:
            del tensors  # before the memory that they refer to
    for piece in memory:
        if isinstance(piece, DeviceArray):
            piece.copy_back()


def _recording(function: Callable, raised: list[Exception]) -> Callable:
    """The function, which notes what it raises."""

    def recorded(*arguments):
        try:
            return function(*arguments)
        except Exception as error:
            raised.append(error)
            raise

    return recorded


@contextlib.contextmanager
def _registered(functions: Mapping[str, Callable]) -> Iterator[None]:
    """Global functions for a while; host code keeps those that it found."""
    before = {name: tvm_ffi.get_global_func(name, allow_missing=True) for name in functions}
    for name, function in functions.items():
        tvm_ffi.register_global_func(name, function, override=True)
    try:
        yield
    finally:
        for name, function in before.items():
            if function is None:
                tvm_ffi.registry.remove_global_func(name)
            else:
                tvm_ffi.register_global_func(name, function, override=True)
