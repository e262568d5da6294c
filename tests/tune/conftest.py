"""A small model to tune, and a target whose kernels this machine runs."""

import json

import pytest
from tvm.target import codegen

FACTORY = """
import torch

from tbn_tvm.nn import TiledLinear


def make():
    torch.manual_seed(0)
    model = torch.nn.Sequential(TiledLinear(64, 128, p=2), torch.nn.ReLU())
    return model, (torch.zeros(2, 64),), ({0: torch.export.Dim("batch", min=1)},)
"""


@pytest.fixture
def model(tmp_path, monkeypatch) -> str:
    """MODEL on the command line; its folder is the working directory."""
    (tmp_path / "tuned_models.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    return "tuned_models:make"


@pytest.fixture(scope="session")
def target() -> str:
    """The plainest target with something to tune: kernels in vectors of any CPU."""
    return json.dumps({"kind": "llvm", "mtriple": codegen.llvm_get_system_triple()})


@pytest.fixture(autouse=True)
def fewer_turns(monkeypatch):
    """Finalists take two turns: tests look at what is recorded, not at times."""
    monkeypatch.setattr("tbn_tvm.tune.settle.ROUNDS", 2)
