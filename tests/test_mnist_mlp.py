"""The shipped model, as a user meets it: through the command line, on both targets."""

import json

import numpy as np
import pytest
import torch

import tbn_tvm
from tbn_tvm.cli.main import main

REFERENCE_ACCURACY = 0.9593
"""Of the authors' own checkpoint of this model."""


@pytest.fixture(scope="module")
def program(example):
    """The shipped model in PyTorch."""
    return tbn_tvm.load_model(example / "mnist_mlp.pt2").module()


@pytest.fixture(scope="module")
def digits(example):
    """The shipped digits: images and labels."""
    with np.load(example / "digits.npz") as arrays:
        return arrays["x"], arrays["labels"]


def test_the_shipped_files_are_small_and_hold_bits(example):
    model = tbn_tvm.load_model(example / "mnist_mlp.pt2")
    sizes = {name: (str(t.dtype), t.numel()) for name, t in model.state_dict.items()}
    assert sizes == {
        "fc1.tile": ("torch.uint8", 3136),
        "fc1.alpha": ("torch.float32", 4),
        "fc2.tile": ("torch.uint8", 160),
        "fc2.alpha": ("torch.float32", 1),
    }
    assert (example / "mnist_mlp.pt2").stat().st_size < 32_000


def test_the_host_artifact_agrees_with_pytorch_on_the_shipped_digits(
    example, program, digits, tmp_path, capsys
):
    images, labels = digits
    artifact = tmp_path / "model.tbn"
    assert main(["compile", str(example / "mnist_mlp.pt2"), "-o", str(artifact)]) == 0
    capsys.readouterr()
    arguments = ["run", str(artifact), "--input", str(example / "digits.npz"), "--json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    expected = program(torch.from_numpy(images)).numpy()
    logits = np.array(report["outputs"]["output"])
    assert report["predictions"] == expected.argmax(1).tolist()
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
    assert report["accuracy"] == (expected.argmax(1) == labels).mean() > REFERENCE_ACCURACY


@pytest.mark.emulator
def test_the_cortex_m4_agrees_with_the_host_within_its_budget(
    example, program, digits, tmp_path, capsys
):
    images, _ = digits
    folder = tmp_path / "out"
    model = str(example / "mnist_mlp.pt2")
    assert main(["compile", model, "--target", "mps2-an386", "-o", str(folder)]) == 0
    capsys.readouterr()
    digits_file = str(example / "digits.npz")
    assert main(["micro", "run", str(folder), "--input", digits_file, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    expected = program(torch.from_numpy(images)).numpy()
    assert report["predictions"] == expected.argmax(1).tolist()
    assert np.abs(np.array(report["outputs"]["output"]) - expected).max() < 1e-4
    # A reference kernel needs 2,650,000 instructions.
    assert report["instructions"]["most"] <= 50_000
    assert report["memory"]["weights"] <= 3_400
    assert report["memory"]["arena"] <= 3_900


@pytest.mark.data
def test_all_of_mnist_through_the_host_artifact(example, program, mnist_digits):
    artifact = tbn_tvm.compile(example / "mnist_mlp.pt2", "llvm")
    images, labels = mnist_digits.test_images, mnist_digits.test_labels
    logits = artifact.run(images.numpy())
    expected = program(images).numpy()
    np.testing.assert_array_equal(logits.argmax(1), expected.argmax(1))
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
    assert (logits.argmax(1) == labels.numpy()).mean() >= 0.965
