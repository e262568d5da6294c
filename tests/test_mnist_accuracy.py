"""The trained models of ``benchmarks/accuracy/mnist``: their bytes and their accuracy."""

import json

import numpy as np
import pytest

import tbn_tvm

MODELS = {"mnist_mlp_bias": 4096, "mnist_mlp_smooth": 4096, "mnist_cnn": 12_288}
"""Bound on the bytes of weights, biases and folded batch norm included, by name."""


@pytest.fixture(scope="module")
def folder(example):
    """Where the models and their logs are."""
    return example.parents[1] / "benchmarks" / "accuracy" / "mnist"


@pytest.mark.parametrize("name", MODELS)
def test_a_compiled_models_weights_are_below_their_bound(folder, name):
    project = tbn_tvm.compile(folder / f"{name}.pt2", "mps2-an386", name=name)
    assert project.memory["weights"] < MODELS[name]


@pytest.mark.parametrize("name", ["mnist_mlp_bias", "mnist_mlp_smooth"])
def test_the_perceptrons_file_holds_bits_alphas_and_biases(folder, name):
    held = tbn_tvm.load_model(folder / f"{name}.pt2").state_dict.values()
    assert sum(t.numel() * t.element_size() for t in held) == 3136 + 2 * 160 + 4 * (4 + 2 + 128)


@pytest.mark.data
@pytest.mark.parametrize("name", MODELS)
def test_the_host_artifact_reaches_the_accuracy_of_the_log(folder, mnist_digits, name):
    log = json.loads((folder / f"{name}.json").read_text())
    artifact = tbn_tvm.compile(folder / f"{name}.pt2", "llvm")
    images = mnist_digits.test_images.numpy()
    if name == "mnist_cnn":
        images = images.reshape(-1, 1, 28, 28)
    parts = [artifact.run(np.ascontiguousarray(part)) for part in np.split(images, 20)]
    right = np.concatenate(parts).argmax(1) == mnist_digits.test_labels.numpy()
    # Layers may have been evaluated in bfloat16 while training.
    assert right.mean() == pytest.approx(log["result"]["accuracy"], abs=5e-4)


@pytest.mark.emulator
@pytest.mark.parametrize("name", ["mnist_mlp_bias", "mnist_mlp_smooth"])
def test_the_cortex_m4_agrees_with_the_host_on_the_shipped_digits(name, folder, example, tmp_path):
    with np.load(example / "digits.npz") as arrays:
        images, labels = arrays["x"][:100], arrays["labels"][:100]
    path = folder / f"{name}.pt2"
    expected = tbn_tvm.compile(path, "llvm").run(images)
    project = tbn_tvm.compile(path, "mps2-an386")
    project.save(tmp_path / "out")
    with tbn_tvm.micro.Session(tmp_path / "out") as session:
        logits = session.run(images)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert (logits.argmax(1) == labels).mean() == (expected.argmax(1) == labels).mean() > 0.95
