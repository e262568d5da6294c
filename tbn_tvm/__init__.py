"""tbn-tvm: a compiler backend on Apache TVM for Tiled Bit Networks.

Heavy parts (PyTorch, TVM) are imported when first used.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "Artifact": "tbn_tvm.runtime",
    "TiledTensor": "tbn_tvm.tiling",
    "compile": "tbn_tvm.compiler",
    "load_model": "tbn_tvm.loading",
}

__all__ = ["Artifact", "TiledTensor", "__version__", "compile", "load_model"]


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    # `tbn_tvm.micro.Session` and its like work after a plain `import tbn_tvm`.
    if name in (
        "export",
        "frontend",
        "micro",
        "nn",
        "op",
        "pipeline",
        "relay_passes",
        "schedules",
        "targets",
    ):
        return importlib.import_module(f"tbn_tvm.{name}")
    raise AttributeError(f"module 'tbn_tvm' has no attribute {name!r}")
