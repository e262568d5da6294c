"""The JSON log of a run: what was run, with what, and figures step by step."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import torch

import tbn_tvm
from tbn_tvm.training.files import replacing


def describe(run: dict) -> dict:
    """A log's beginning: the run's identity and the versions that ran it."""
    versions = {
        "tbn_tvm": tbn_tvm.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return {**run, "versions": versions}


def write_log(path: Path, log: dict) -> None:
    """Write a log; an existing one is replaced only once the new one is whole.

    Raises
    ------
    TbnError
        Where it cannot be written.
    """
    with replacing(path, "log") as partial:
        partial.write_text(json.dumps(log, indent=1) + "\n")
