"""The package from a checkout, with nothing installed.

``tbn_tvm.relay_passes``, ``tbn_tvm.schedules`` and ``tbn_tvm.targets`` are folders beside
``tbn_tvm`` in the repository; setuptools puts them inside the package. Here a folder of links does.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

BESIDE = ("relay_passes", "schedules", "targets")


def make_tree(repository: Path, folder: Path) -> Path:
    """Make a folder in which ``import tbn_tvm`` finds all of the package.

    Parameters
    ----------
    repository : Path
        The checkout.
    folder : Path
        Made where missing; links that are there stay.

    Returns
    -------
    Path
        For ``PYTHONPATH``.
    """
    package = folder / "tbn_tvm"
    package.mkdir(parents=True, exist_ok=True)
    sources = [path for path in (repository / "tbn_tvm").iterdir() if path.name != "__pycache__"]
    for source in (*sources, *(repository / name for name in BESIDE)):
        link = package / source.name
        if not link.exists():
            link.symlink_to(source.resolve())
    return folder


CUDA_LIBRARIES = ("libcudart.so.13", "libcuda.so.1")
"""What TVM's CUDA run time is linked with. It is loaded, or given up, where TVM is imported."""


def cuda_folders() -> list[str]:
    """Folders of those libraries that the loader may not know: PyTorch's, the toolkit's, the
    driver's."""
    found = importlib.util.find_spec("nvidia")
    packages = [Path(path) for path in (found.submodule_search_locations or [])] if found else []
    folders = [lib for package in packages for lib in sorted(package.glob("*/lib"))]
    folders += map(Path, ("/usr/local/cuda/lib64", "/usr/local/nvidia/lib64"))
    return [
        str(folder)
        for folder in folders
        if any((folder / library).exists() for library in CUDA_LIBRARIES)
    ]


def environment(tree: Path) -> dict[str, str]:
    """The environment in which processes find the package, and nothing of another checkout."""
    paths = [str(tree), *filter(None, [os.environ.get("PYTHONPATH")])]
    libraries = [*filter(None, [os.environ.get("LD_LIBRARY_PATH")]), *cuda_folders()]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        # Neither the working folder nor a script's own goes before it.
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        # TVM-FFI would compile an extension for PyTorch versions that lack its interface.
        "TVM_FFI_DISABLE_TORCH_C_DLPACK": "1",
    }
