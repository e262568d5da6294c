"""Pickles that hold data alone: containers, numbers, strings and NumPy arrays.

A pickle may name any callable of any module to be called while it is read. These name only those
that rebuild an array; the rest is refused.
"""

from __future__ import annotations

import importlib
import io
import pickle

from tbn_tvm.errors import TbnError

_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    # NumPy 1 and 2 call the module differently.
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it calls {module}.{name}, which is not data")
        # The old path of NumPy's function warns under NumPy 2.
        if module == "numpy.core.multiarray":
            module = "numpy._core.multiarray"
            try:
                return getattr(importlib.import_module(module), name)
            except ImportError:
                module = "numpy.core.multiarray"
        return getattr(importlib.import_module(module), name)


def load_plain(data: bytes, where: str) -> object:
    """What a pickle holds; strings of Python 2 come as bytes.

    Parameters
    ----------
    data : bytes
        The pickle.
    where : str
        What it is called in errors.

    Raises
    ------
    TbnError
        Where it is damaged, or holds anything but data.
    """
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # damaged pickles raise nearly anything
        text = str(error) or type(error).__name__
        raise TbnError(f"{where}: not a pickle of plain data, or damaged: {text}") from None
