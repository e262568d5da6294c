"""A few epochs on each real format of images: a convolutional network learns an easy task."""

import pytest
import torch

import tbn_tvm
from tbn_tvm.models.recipes import find_recipe
from tbn_tvm.training.engine import Options, run

CIFAR = find_recipe("cifar10-resnet8").with_settings(
    {
        "sizes.widths": (4, 8, 16),
        "min_size": 200,
        "batch_size": 10,
        "optimiser": "adam",
        "learning_rate": 0.01,
        "warmup_epochs": 0,
        "evaluate_every": 1,
    }
)
IMAGENET = find_recipe("imagenet-resnet18").with_settings(
    {
        "sizes.widths": (8, 8, 16, 16),
        "sizes.classes": 2,
        "data_options.side": 32,
        "data_options.workers": 0,
        "min_size": 200,
        "batch_size": 8,
        "learning_rate": 0.02,
        "warmup_epochs": 0,
    }
)


@pytest.mark.parametrize(("recipe", "data"), [(CIFAR, "cifar"), (IMAGENET, "imagenet")])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_few_epochs_learn_an_easy_task(request, tmp_path, recipe, data, precision):
    folder, model = request.getfixturevalue(data), tmp_path / "model.pt2"
    recipe = recipe.with_settings({"epochs": 3 if data == "imagenet" else 2})
    result = run(recipe, folder, model, Options(precision=precision))
    first, *_, last = result.log["steps"]
    assert last["loss"] < first["loss"]
    assert last["test"]["accuracy"] >= 0.75
    assert result.log["precision"] == precision
    program = tbn_tvm.load_model(model)
    assert {str(x.dtype) for x in program.state_dict.values()} <= {
        "torch.uint8",
        "torch.float32",
        "torch.int64",
    }
    assert program.module()(torch.zeros(3, 3, 32, 32)).shape == (3, 10 if data == "cifar" else 2)
