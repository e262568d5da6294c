"""A run's state on disk, so that an interrupted run goes on exactly where it stopped."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch

from tbn_tvm.errors import TbnError, UsageError
from tbn_tvm.training.files import replacing


def save_checkpoint(path: Path, identity: dict, state: dict) -> None:
    """Write a state; an existing one is replaced only once the new one is whole.

    Parameters
    ----------
    path : Path
        The file.
    identity : dict
        What must be the same for a run to go on: plain types only.
    state : dict
        Tensors and plain types.

    Raises
    ------
    TbnError
        Where the file cannot be written.
    """
    with replacing(path, "checkpoint") as partial:
        torch.save({"identity": identity, "state": state}, partial)


def load_checkpoint(path: Path, identity: dict) -> dict:
    """The state of a run with this identity.

    Raises
    ------
    TbnError
        Where the file is damaged or is no checkpoint.
    UsageError
        Where it is of another run.
    """
    try:
        _check_sums(path)
        held = torch.load(path, weights_only=True, map_location="cpu")
        kept, state = held["identity"], held["state"]
        different = [k for k in {**kept, **identity} if kept.get(k) != identity.get(k)]
    except Exception as error:  # unpickling and zip raise many kinds on damaged input
        raise TbnError(
            f"{path}: not a checkpoint of this recipe, or damaged ({type(error).__name__}); "
            "remove it to start again"
        ) from None
    if different:
        raise UsageError(
            f"{path}: holds a run with other settings ({', '.join(different)}); give the same "
            "ones to resume it, or remove it to start again"
        )
    return state


def _check_sums(path: Path) -> None:
    """PyTorch writes a checksum for each tensor, in zip's way, but does not look at them."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(damaged)
