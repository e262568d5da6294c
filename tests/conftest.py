"""Fixtures shared by tests: what trains or compiles does so once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    # Tests share a small machine with one another; PyTorch's threads only get in the way.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, and say why."""
    lacking = [p for p in ("arm-none-eabi-gcc", "qemu-system-arm") if shutil.which(p) is None]
    no_device = any("gpu" in item.keywords for item in items) and not _has_cuda_device()
    for item in items:
        if "gpu" in item.keywords and no_device:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if "emulator" in item.keywords and lacking:
            item.add_marker(pytest.mark.skip(reason=f"{', '.join(lacking)} not installed"))
        if "data" in item.keywords and data_folder() is None:
            item.add_marker(pytest.mark.skip(reason="no MNIST: set TBN_DATA to its folder"))


def _has_cuda_device() -> bool:
    import tvm

    return bool(tvm.cuda(0).exist)


def data_folder() -> Path | None:
    """Where the data sets are, if anywhere."""
    folder = Path(os.environ.get("TBN_DATA", ROOT.parent / "shared" / "data"))
    return folder if (folder / "mnist").is_dir() else None


@pytest.fixture(scope="session")
def mnist_digits():
    """The MNIST images and labels, for tests marked ``data``."""
    from tbn_tvm.training.data.mnist import load_digits

    return load_digits(data_folder())


@pytest.fixture(scope="session")
def example() -> Path:
    """The folder of the shipped model."""
    return ROOT / "examples" / "mnist_mlp"
