"""From a float twin to a tiled model, through the command line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tbn_tvm
from tbn_tvm.cli.main import main
from tbn_tvm.errors import TbnError, UsageError
from tbn_tvm.models.recipes import find_recipe
from tbn_tvm.nn import TiledLinear
from tbn_tvm.training.build import build_model, load_teacher
from tbn_tvm.training.export import export

pytest.importorskip("scipy")

ETTH1 = Path(__file__).parents[2] / "benchmarks/accuracy/etth1"

SMALL = ["--set", "sizes.widths=[784,16,10]", "--set", "min_size=1000", "--batch-size", "20"]
SMALL += ["--polish-sweeps", "0"]


@pytest.fixture(scope="module")
def twin(digits, tmp_path_factory):
    """A trained float twin as tbn-tvm train exports it."""
    path = tmp_path_factory.mktemp("twin") / "float.pt2"
    arguments = ["--data", str(digits), "-o", str(path), "--float", "--epochs", "8"]
    assert main(["train", "mnist-mlp", *SMALL, *arguments]) == 0
    return path


def small_recipe(**settings):
    return find_recipe("mnist-mlp").with_settings(
        {"sizes.widths": (784, 16, 10), "min_size": 1000, **settings}
    )


def tiled_tensors(model):
    return [m.tiled_tensor() for m in model.modules() if isinstance(m, TiledLinear)]


def test_a_float_twin_becomes_a_tiled_model_that_learns_from_it(digits, twin, tmp_path, capsys):
    output, log = tmp_path / "model.pt2", tmp_path / "log.json"
    arguments = ["--data", str(digits), "-o", str(output), "--init", str(twin)]
    arguments += ["--epochs", "2", "--log", str(log), "--json"]
    assert main(["finetune", "mnist-mlp", *SMALL, *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["accuracy"] > 0.9
    recipe = json.loads(log.read_text())["recipe"]
    assert recipe["teacher"] == recipe["init"] == str(twin)
    assert recipe["learning_rate"] == pytest.approx(1e-3)
    assert (recipe["epochs"], recipe["distill"], recipe["calibration"]) == (2, 0.5, 500)
    state = tbn_tvm.load_model(output).state_dict
    assert any(name.endswith("tile") for name in state)


def test_fine_tuning_is_shorter_gentler_and_can_be_set():
    base = find_recipe("mnist-mlp")
    tuned = base.fine_tuning("float.pt2")
    assert (tuned.epochs, tuned.learning_rate) == (50, pytest.approx(1e-3))
    assert tuned.with_settings({"distill": "0", "epochs": 7}).epochs == 7
    assert find_recipe("mnist-cnn").fine_tuning("x.pt2").warmup_epochs == 0


def test_a_recipe_says_what_is_different_in_its_fine_tuning():
    base = replace(find_recipe("mnist-mlp"), tuning={"epochs": 3, "optimiser": "sgd"})
    tuned = base.fine_tuning("float.pt2")
    assert (tuned.epochs, tuned.optimiser, tuned.distill) == (3, "sgd", 0.5)
    assert (base.epochs, base.optimiser) == (200, "adam")


@pytest.mark.parametrize("name", ["tsmixer", "transformer"])
def test_etth1_is_fine_tuned_as_it_was_measured(name):
    log = json.loads((ETTH1 / f"{name}-distilled-seed1.json").read_text())
    measured = {k: v for k, v in log["recipe"].items() if k not in ("about", "tuning")}
    tuned = find_recipe(f"etth1-{name}").fine_tuning(measured["init"]).to_dict()
    assert {key: tuned[key] for key in measured} == measured


def test_the_start_is_nearer_with_samples(twin):
    recipe, x = small_recipe(init=str(twin)), torch.rand(64, 784)
    teacher = load_teacher(small_recipe(teacher=str(twin), distill=1), torch.device("cpu"))
    distances = []
    for samples in (None, (x,)):
        model = build_model(recipe, False, samples).eval()
        with torch.no_grad():
            distances.append(float((model(x) - teacher(x)).square().mean()))
    assert distances[1] < 0.9 * distances[0]


def test_a_state_dict_is_both_start_and_teacher(twin, tmp_path):
    state = tbn_tvm.load_model(twin).state_dict
    path = tmp_path / "float.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    x, cpu = torch.rand(4, 784), torch.device("cpu")
    exported = load_teacher(small_recipe(teacher=str(twin), distill=1), cpu)
    loaded = load_teacher(small_recipe(teacher=str(path), distill=1), cpu)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), exported(x))
    assert build_model(small_recipe(init=str(path)), False) is not None


@pytest.mark.parametrize("alpha", ["tile", "layer"])
def test_a_tiled_model_is_a_start_too(alpha, tmp_path):
    settings = {"alpha": alpha, "alpha_from": "separate"}
    first, x = build_model(small_recipe(**settings), False).eval(), torch.rand(200, 784)
    before, path = tiled_tensors(first), tmp_path / "tiled.pt2"
    with torch.no_grad():
        expected = first(x)
    export(first, (x[:2],), path)
    again = build_model(small_recipe(init=str(path), **settings), False, (x,)).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(x), expected, rtol=1e-4, atol=1e-5)
    after = tiled_tensors(again)
    assert [(layer.p, layer.tile.tolist()) for layer in after] == [
        (layer.p, layer.tile.tolist()) for layer in before
    ]
    assert [layer.p for layer in after] == [4, 1]


def test_a_tiled_model_of_other_sizes_is_no_start(tmp_path):
    path = tmp_path / "tiled.pt2"
    export(build_model(small_recipe(), False), (torch.rand(2, 784),), path)
    with pytest.raises(TbnError, match="not a float model of this architecture"):
        build_model(small_recipe(init=str(path), **{"sizes.widths": (784, 24, 10)}), False)


def test_without_a_float_model_there_is_nothing_to_fine_tune(digits, tmp_path, capsys):
    arguments = ["finetune", "mnist-mlp", "--data", str(digits), "-o", str(tmp_path / "m.pt2")]
    assert main(arguments) == UsageError.exit_code
    assert "--init is missing" in capsys.readouterr().err
