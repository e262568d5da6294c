"""``tbn-tvm train`` as a user or a script sees it."""

import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch

import tbn_tvm
from tbn_tvm.cli.main import main
from tbn_tvm.models.recipes import RECIPES

SMALL = ["--epochs", "2", "--batch-size", "20", "--polish-sweeps", "0"]
SMALL += ["--set", "sizes.widths=[784, 32, 10]", "--set", "min_size=1000"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """MNIST's four files with two easy classes: a bright upper and a bright lower half."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for split, count in (("train", 100), ("t10k", 30)):
        labels = (np.arange(count) % 2).astype(np.uint8)
        images = random.integers(0, 60, (count, 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[14 * label : 14 * label + 14] += 150
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (folder / f"{split}-{kind}-ubyte").write_bytes(header + array.tobytes())
    return folder


def command(data, output, *options) -> list[str]:
    """Arguments of a small run."""
    return ["train", "mnist-mlp", "--data", str(data), "-o", str(output), *SMALL, *options]


def test_a_run_reports_itself_as_json_writes_its_log_and_draws_it(data, tmp_path, capsys):
    log, plot = tmp_path / "log.json", tmp_path / "run.png"
    options = "--json", "--log", str(log), "--plot", str(plot), "--seed", "3", "--p", "2"
    assert main(command(data, tmp_path / "model.pt2", *options)) == 0
    captured = capsys.readouterr()
    told = captured.err.splitlines()
    assert [line[:19] for line in told] == [" 50.0%  epoch  loss", "100.0%  epoch  loss"]
    assert all("test accuracy" in line for line in told)
    report = json.loads(captured.out)
    assert report["finished"]
    assert (report["recipe"]["seed"], report["recipe"]["p"], report["float"]) == (3, 2, False)
    assert report["versions"]["torch"] == torch.__version__
    steps = json.loads(log.read_text())["steps"]
    assert [step["phase"] for step in steps] == ["epoch", "epoch"]
    assert steps[-1]["test"] == report["result"]
    assert steps[0]["learning_rate"] > steps[1]["learning_rate"] > 0
    from PIL import Image

    with Image.open(plot) as image:
        assert image.format == "PNG" and image.size[0] > 500
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt2", "log.json", "run.png"}


def test_a_time_limit_ends_with_status_3_and_the_same_command_goes_on(data, tmp_path, capsys):
    arguments = command(data, tmp_path / "model.pt2", "--float")
    assert main([*arguments, "--time-limit", "1e-9"]) == 3
    assert capsys.readouterr().out == "stopped in epoch 1 of 2; the same command goes on\n"
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2.checkpoint"]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"{tmp_path / 'model.pt2'}: test loss ") and "after 2 epochs" in told
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


def run_two_processes(arguments: list[str]) -> subprocess.CompletedProcess:
    """``tbn-tvm`` under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    return subprocess.run(
        [sys.executable, *launcher, "tbn_tvm.cli.main", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_two_processes_train_as_one_does(data, tmp_path):
    """Under torchrun: the same weights within rounding, written by the first process alone."""
    arguments = command(data, tmp_path / "one.pt2", "--float", "--log", str(tmp_path / "one.json"))
    # SGD: Adam's steps for tiny gradients would magnify rounding. Batches of 19 do not halve.
    arguments += ["--set", "optimiser=sgd", "--learning-rate", "0.05", "--batch-size", "19"]
    assert main(arguments) == 0
    done = run_two_processes([*(word.replace("one.", "two.") for word in arguments), "--json"])
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["processes"] == 2
    logs = [json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json")]
    for one, two in zip(*(log["steps"] for log in logs), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two["test"]["loss"] == pytest.approx(one["test"]["loss"], rel=1e-4)
    first, second = (tbn_tvm.load_model(tmp_path / f"{n}.pt2").state_dict for n in ("one", "two"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-5)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"one.pt2", "one.json", "two.pt2", "two.json"}


def test_two_processes_that_were_stopped_go_on_to_the_same_bits(data, tmp_path):
    whole, parts = (command(data, tmp_path / name) for name in ("whole.pt2", "parts.pt2"))
    assert run_two_processes(whole).returncode == 0
    # The launcher reports a process's 3 as a failure of its own.
    stopped = run_two_processes([*parts, "--time-limit", "1e-9"])
    assert stopped.returncode != 0 and "stopped in epoch 1 of 2" in stopped.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"whole.pt2", "parts.pt2.checkpoint"}
    done = run_two_processes(parts)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (
        tbn_tvm.load_model(tmp_path / n).state_dict for n in ("whole.pt2", "parts.pt2")
    )
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(second[name], value), name


def test_all_recipes_are_listed(capsys):
    assert main(["train", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["recipes"]
    assert [recipe["name"] for recipe in listed] == list(RECIPES)
    assert main(["train", "--list"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in RECIPES)


def test_recipes_are_listed_without_pytorch():
    code = (
        "import sys; from tbn_tvm.cli.main import main; main(['train', '--list']); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train"], "RECIPE is missing; expected tbn-tvm train RECIPE --data DIR -o FILE"),
        (["train", "mnist-mlp"], "--data is missing"),
        (["train", "mnist-mlp", "--data", "x"], "-o is missing"),
        (["train", "mnist-mlp", "--data", "x", "-o", "m.pt2", "--plot", "p.jpg"], "--plot p.jpg: "),
        (["train", "mnist-mlp", "--data", "x", "-o", "m.pt2", "--log", "no/l"], "--log no/l: its"),
        (
            ["train", "mnist-mlp", "--data", "x", "-o", "m.pt2", "--log", "."],
            "--log .: is a folder",
        ),
        (["train", "mnist-mlp", "--data", "x", "-o", "m.pt2", "--device", "cuda"], "finds no GPU"),
    ],
)
def test_what_is_missing_or_cannot_be_is_told_in_one_line(capsys, monkeypatch, arguments, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    error = [line for line in captured.err.splitlines() if "error: " in line]
    assert captured.out == "" and len(error) == 1 and told in error[0]
