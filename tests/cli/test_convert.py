"""``tbn-tvm convert``: reference checkpoints to programs, and what it refuses."""

import json

import numpy as np
import pytest
import torch

from tbn_tvm.cli.main import main
from tbn_tvm.importing import import_model

FACTORY = """
import torch


def make():
    model = torch.nn.Sequential(
        torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, 5)
    )
    return model, (torch.zeros(2, 12),), ({0: torch.export.Dim("batch", min=1)},)
"""


@pytest.fixture
def cwd(tmp_path, monkeypatch):
    """A folder with a factory and a checkpoint in the reference's terms."""
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "convertible.py").write_text(FACTORY)
    state = {
        "0.scores": torch.randn(8, 12),
        "0.weight": torch.randn(8, 12),
        "0.bias": torch.randn(8),
        "2.weight": torch.randn(5, 8),
        "2.bias": torch.randn(5),
    }
    torch.save({"state_dict": state, "epoch": 7}, "reference.pth")
    renamed = {name.replace("0.", "first.").replace("2.", "second."): state[name] for name in state}
    torch.save(renamed, "renamed.pth")
    return tmp_path


def convert(*arguments):
    return main(["convert", *arguments, "--model", "convertible:make", "--min-size", "50"])


def test_the_program_computes_what_the_checkpoint_means(cwd, capsys):
    assert convert("reference.pth", "--p", "2", "--json", "-o", "model.pt2") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"model": "model.pt2", "layers": {"0": "tiled", "2": "binary"}}
    state = torch.load("reference.pth")["state_dict"]
    tile = np.where(state["0.scores"].double().numpy().reshape(2, -1).sum(0) > 0, 1.0, -1.0)
    alphas = state["0.weight"].double().abs().numpy().reshape(2, -1).mean(1)
    first = (alphas[:, None] * tile).reshape(8, 12)
    second = state["2.weight"].double().numpy()
    second = np.where(second > 0, 1, -1) * np.abs(second).mean()
    x = np.random.default_rng(0).standard_normal((3, 12))
    hidden = np.maximum(x @ first.T + state["0.bias"].numpy(), 0)
    expected = hidden @ second.T + state["2.bias"].numpy()
    program = torch.export.load("model.pt2")
    actual = program.module()(torch.from_numpy(x.astype(np.float32))).detach().numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    assert [row.p for row in import_model("model.pt2").layers] == [2, 1]


def test_layers_are_paired_by_order_on_request(cwd, capsys):
    assert convert("renamed.pth", "-o", "model.pt2") == 1
    assert "missing: 0.scores" in capsys.readouterr().err
    assert convert("renamed.pth", "--by-order", "-o", "model.pt2") == 0


def test_a_registered_architecture_is_found_by_name(cwd):
    state = {
        name: torch.randn(shape)
        for name, shape in {
            "fc1.scores": (128, 784),
            "fc1.weight": (128, 784),
            "fc2.weight": (10, 128),
        }.items()
    }
    torch.save(state, "mlp.pth")
    arguments = ["convert", "mlp.pth", "--model", "mnist-mlp", "--by-order", "-o", "mlp.pt2"]
    assert main(arguments) == 0
    assert [row.p for row in import_model("mlp.pt2").layers] == [4, 1]


class Malicious:
    def __reduce__(self):
        return (open, ("ran", "w"))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b"no checkpoint"), "not a checkpoint of tensors"),
        (lambda path: torch.save(Malicious(), path), "not a checkpoint of tensors"),
        (lambda path: torch.save([torch.zeros(2)], path), "holds a list: expected a state dict"),
        (lambda path: torch.save({"epoch": 1}, path), "holds no tensors under epoch"),
    ],
    ids=["missing", "garbage", "code", "list", "no tensors"],
)
def test_what_is_no_checkpoint_is_refused_and_nothing_is_written(cwd, capsys, write, message):
    write(cwd / "given.pth")
    assert convert("given.pth", "-o", "model.pt2") == 1
    assert message in capsys.readouterr().err
    assert not list(cwd.glob("model.pt2*"))
    assert not (cwd / "ran").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no-such-model", "-o", "model.pt2"], "unknown model 'no-such-model'"),
        (["--model", "mnist-mlp", "-o", "model.onnx"], "expected a name that ends in .pt2"),
        (["--model", "mnist-mlp", "-o", "no/model.pt2"], "its folder does not exist"),
    ],
)
def test_wrong_arguments_are_usage_errors(cwd, capsys, arguments, message):
    assert main(["convert", "reference.pth", *arguments]) == 2
    assert message in capsys.readouterr().err
