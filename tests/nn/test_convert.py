"""tile_model and freeze: which layers they change, what they report, what they leave alone."""

import copy
import json
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from tbn_tvm.errors import UsageError
from tbn_tvm.nn import (
    FrozenTiledConv2d,
    FrozenTiledLinear,
    TiledConv1d,
    TiledConv2d,
    TiledLinear,
    freeze,
    tile_model,
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def single_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def mlp():
    return nn.Sequential(
        OrderedDict(body=nn.Linear(40, 30), act=nn.ReLU(), head=nn.Linear(30, 10, bias=False))
    )


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same", bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=2, padding_mode="reflect"),
        nn.ReLU(),
        nn.Flatten(2),
        nn.Conv1d(16, 4, 5, dilation=2),
        nn.Flatten(),
        nn.Linear(4 * 8, 10),
    )


def rows(report):
    return {layer.name: (layer.p, layer.reason) for layer in report.layers}


# -- tile_model -----------------------------------------------------------------------------


def test_layers_become_tiled_ones_that_start_from_the_float_weight():
    model = nn.Sequential(
        nn.Linear(8, 8), nn.Conv1d(4, 8, 3), nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)
    )
    weights = [layer.weight.detach().clone() for layer in model[:3]]
    report = tile_model(model, 4, min_size=0, start="copy")
    assert [type(layer) for layer in model[:3]] == [TiledLinear, TiledConv1d, TiledConv2d]
    assert isinstance(model[3], nn.BatchNorm2d)
    assert all(torch.equal(layer.scores, w) for layer, w in zip(model[:3], weights, strict=True))
    assert rows(report) == {"0": (4, ""), "1": (4, ""), "2": (4, "")}
    assert report.tiled == report.layers


def test_layers_below_min_size_become_binary():
    model = mlp()
    report = tile_model(model, 4, min_size=1200)
    assert (model.body.p, model.head.p) == (4, 1)  # 1200 weights are not fewer than 1200
    assert rows(report)["body"] == (4, "")
    assert rows(report)["head"] == (1, "300 weights, fewer than min_size = 1200: binary")


def test_min_size_is_64000_unless_given():
    model = nn.Sequential(nn.Linear(250, 256), nn.Linear(256, 249))
    tile_model(model, 4)
    assert [layer.p for layer in model] == [4, 1]


def test_p_1_needs_no_reason():
    assert rows(tile_model(mlp(), 1)) == {"body": (1, ""), "head": (1, "")}


def test_the_largest_divisor_is_used_where_p_does_not_divide():
    model = nn.Sequential(nn.Linear(15, 7), nn.Linear(7, 11))
    report = tile_model(model, 4, min_size=0)
    assert [layer.p for layer in model] == [3, 1]
    assert rows(report) == {
        "0": (3, "4 does not divide 105 weights"),
        "1": (1, "4 does not divide 77 weights"),
    }


@pytest.mark.parametrize(
    "skip",
    ["head", ["head"], ["h*"], ["nothing", "?ead"], lambda name, module: module.bias is None],
    ids=["name", "names", "pattern", "patterns", "predicate"],
)
def test_skipped_layers_stay_float(skip):
    model = mlp()
    head = model.head
    report = tile_model(model, 4, min_size=0, skip=skip)
    assert model.head is head
    assert rows(report) == {"body": (4, ""), "head": (None, "skipped on request")}
    assert [layer.name for layer in report.tiled] == ["body"]


def test_a_shared_layer_is_replaced_once_and_stays_shared():
    shared = nn.Linear(8, 8)
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared, nn.Linear(8, 8))})
    report = tile_model(model, 4, min_size=0)
    assert list(rows(report)) == ["a.0", "b.1"]
    assert isinstance(model["a"][0], TiledLinear)
    assert model["a"][0] is model["b"][0]
    freeze(model)
    assert isinstance(model["a"][0], FrozenTiledLinear)
    assert model["a"][0] is model["b"][0]


def test_the_projection_inside_multihead_attention_stays_float_and_is_reported():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2), "mlp": nn.Linear(16, 16)})
    projection = model["attention"].out_proj
    report = tile_model(model, 4, min_size=0)
    assert model["attention"].out_proj is projection
    assert rows(report) == {
        "attention.out_proj": (None, "no tiled form of this layer"),
        "mlp": (4, ""),
    }


def test_same_padding_with_an_even_kernel_stays_float_with_the_reason():
    model = nn.Sequential(nn.Conv2d(4, 8, 4, padding="same"), nn.Conv2d(8, 8, 3, padding="same"))
    report = tile_model(model, 4, min_size=0)
    assert isinstance(model[0], nn.Conv2d)
    assert isinstance(model[1], TiledConv2d)
    p, reason = rows(report)["0"]
    assert p is None
    assert "padding='same' needs stride 1 and an odd dilated kernel" in reason


def test_a_head_tied_to_an_embedding_is_untied_and_the_report_says_so():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)
            self.head.weight = self.table.weight

    model = Tied()
    table = model.table.weight.detach().clone()
    told = rows(tile_model(model, p=4, min_size=0))
    assert told["head"] == (4, "its weight was shared with table: from here on it is its own")
    assert told["table"] == (None, "no tiled form of this layer")
    assert isinstance(model.head, TiledLinear)
    assert torch.equal(model.table.weight, table)


def test_layers_that_held_one_parameter_name_each_other():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    told = rows(tile_model(model, p=3, min_size=0))
    assert told["0"][1].startswith("3 does not divide 64 weights; its weight was shared with 2")
    assert told["1"] == (2, "3 does not divide 64 weights")
    assert "shared with 0" in told["2"][1]


@pytest.mark.parametrize(
    ("wrap", "remedy"),
    [
        (nn.utils.parametrizations.weight_norm, "parametrize.remove_parametrizations"),
        (nn.utils.parametrizations.orthogonal, "parametrize.remove_parametrizations"),
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "prune.remove"),
    ],
    ids=["weight_norm", "orthogonal", "pruned"],
)
def test_a_weight_that_is_computed_stays_float_and_the_report_says_what_to_do(wrap, remedy):
    model = nn.Sequential(wrap(nn.Linear(8, 8)), nn.Linear(8, 8))
    told = rows(tile_model(model, p=4, min_size=0))
    assert told["0"][0] is None
    assert remedy in told["0"][1]
    assert told["1"] == (4, "")


def test_a_removed_parametrization_leaves_a_layer_that_is_tiled():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)))
    parametrize.remove_parametrizations(model[0], "weight")
    assert rows(tile_model(model, p=4, min_size=0)) == {"0": (4, "")}


def test_the_report_reads_as_text_and_as_json():
    report = tile_model(mlp(), 4, min_size=1000, skip=["head"])
    error = report.layers[0].error
    assert str(report).splitlines() == [
        "body: Linear 30x40 -> p = 4",
        "head: Linear 10x30 -> float (skipped on request)",
    ]
    assert json.loads(json.dumps(report.to_dict())) == {
        "layers": [
            {
                "name": "body",
                "kind": "Linear",
                "shape": [30, 40],
                "p": 4,
                "reason": "",
                "error": error,
                "permuted": False,
            },
            {
                "name": "head",
                "kind": "Linear",
                "shape": [10, 30],
                "p": None,
                "reason": "skipped on request",
                "error": None,
                "permuted": False,
            },
        ]
    }


def test_options_mode_dtype_and_missing_bias_carry_over():
    model = mlp().double().eval()
    model.body.train()
    tile_model(model, 4, min_size=0, alpha="layer", alpha_from="scores", gradient="exact")
    assert (model.body.alpha, model.body.alpha_from) == ("layer", "scores")
    assert model.body.gradient == "exact"
    assert (model.body.training, model.head.training) == (True, False)
    assert model.head.scores.dtype == torch.float64
    assert model.head.bias is None


def test_a_converted_model_is_left_as_it_is():
    model = mlp()
    tile_model(model, 4, min_size=0)
    layers = list(model)
    assert tile_model(model, 2, min_size=0).layers == ()
    assert list(model) == layers
    freeze(model)
    assert tile_model(model, 2, min_size=0).layers == ()


def test_a_weight_attribute_that_is_no_tensor_is_no_layer():
    model = mlp()
    model.weight = 0.5  # of a loss term, say
    model.act.weight = nn.Linear(8, 8)
    assert list(rows(tile_model(model, 4, min_size=0))) == ["body", "act.weight", "head"]


@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.Conv1d(8, 8, 3), nn.Conv2d(8, 8, 3)])
def test_a_bare_layer_is_refused(layer):
    with pytest.raises(UsageError, match=rf"bare {type(layer).__name__}.*nn.Sequential"):
        tile_model(layer, 4)


@pytest.mark.parametrize("p", [0, -4])
def test_a_factor_below_one_is_refused(p):
    with pytest.raises(UsageError, match=f"p={p}: expected a compression factor of at least 1"):
        tile_model(mlp(), p)


def test_an_unknown_option_value_is_refused_before_anything_changes():
    model = mlp()
    with pytest.raises(UsageError, match="alpha='row': expected one of tile, layer"):
        tile_model(model, 4, min_size=0, alpha="row")
    assert isinstance(model.body, nn.Linear)


# -- where training starts from ---------------------------------------------------------------


def squared_distance(model, reference, x):
    with torch.no_grad():
        return float((model.eval()(x) - reference(x)).square().mean())


def test_each_step_of_the_start_brings_outputs_nearer():
    reference, x = cnn(), torch.randn(128, 3, 8, 8)
    reference(x)
    reference.eval()
    distances = []
    for options in ({"start": "copy"}, {}, {"calibration": x}, {"calibration": x, "permute": True}):
        model = copy.deepcopy(reference)
        tile_model(model, 4, min_size=0, **options)
        distances.append(squared_distance(model, reference, x))
    assert distances == sorted(distances, reverse=True)


def losses(model, x, y, steps):
    """Cross entropy before and after some steps of training."""
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    held = []
    for _ in range(steps + 1):
        loss = nn.functional.cross_entropy(model(x), y)
        held.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return held[0], held[-1]


@pytest.mark.parametrize("seed", [0, 1])
def test_training_goes_on_better_from_the_fitted_start_than_from_a_random_one(seed):
    torch.manual_seed(seed)
    # The float model is right about everything: it is the teacher that the labels come from.
    teacher = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 6))
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(3)
        x = torch.randn(1000, 20)
        y = teacher(x).argmax(1)
    found = {}
    for start, options in {
        "random": {"start": "random"},
        "fitted": {"permute": True, "calibration": x[:200]},
    }.items():
        model = copy.deepcopy(teacher)
        tile_model(model, 4, min_size=500, **options)
        found[start] = losses(model, x, y, 40)
    assert found["fitted"][0] < found["random"][0]
    assert found["fitted"][1] < found["random"][1]


def test_the_nearest_start_has_the_smallest_error_and_permuting_makes_it_smaller():
    x = torch.randn(8, 40)
    errors = {}
    for name, options in {
        "copy": {"start": "copy"},
        "nearest": {},
        "permuted": {"permute": True, "calibration": x},
    }.items():
        torch.manual_seed(0)
        (body, head) = tile_model(mlp(), 2, min_size=0, **options).layers
        errors[name] = body.error
        assert body.permuted == (name == "permuted")
    assert errors["permuted"] < errors["nearest"] < errors["copy"]
    assert head.reason == "outputs keep their order: its output is an output of the model"


def test_a_permuted_start_says_so():
    report = tile_model(mlp(), 2, min_size=1000, permute=True, calibration=torch.randn(8, 40))
    assert str(report).splitlines()[0] == "body: Linear 30x40 -> p = 2, outputs permuted"


def test_a_random_start_keeps_only_the_biases():
    model = mlp()
    weight, bias = model.body.weight.detach().clone(), model.body.bias.detach().clone()
    tile_model(model, 4, min_size=0, start="random")
    assert torch.equal(model.body.bias, bias)
    assert not torch.equal(model.body.scores, weight)
    assert float(model.body.scores.detach().std()) == pytest.approx((2 / 40) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "best"}, "start='best': expected one of nearest, copy, random"),
        ({"permute": True}, "permute=True needs calibration"),
        ({"start": "copy", "calibration": torch.zeros(1, 40)}, "belong to start='nearest'"),
    ],
)
def test_contradictions_are_refused_before_anything_changes(options, message):
    model = mlp()
    with pytest.raises(UsageError, match=message):
        tile_model(model, 2, min_size=0, **options)
    assert isinstance(model.body, nn.Linear)


# -- freeze ---------------------------------------------------------------------------------


def test_a_frozen_state_holds_bits_and_alphas_for_tiled_layers():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 8, bias=False))
    tile_model(model, 4, min_size=0)
    state = freeze(model).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items() if name[0] != "1"} == {
        "0.tile": (9,),
        "0.alpha": (4,),
        "0.bias": (8,),
        "2.tile": (2,),
        "2.alpha": (4,),
    }
    assert state["0.tile"].dtype == state["2.tile"].dtype == torch.uint8
    assert state["0.alpha"].dtype == state["2.alpha"].dtype == torch.float32
    assert "1.running_mean" in state


def test_freeze_works_in_place_and_leaves_eval_mode():
    model = mlp().train()
    tile_model(model, 4, min_size=0)
    assert freeze(model) is model
    assert isinstance(model.body, FrozenTiledLinear)
    assert not any(module.training for module in model.modules())


def test_freeze_of_a_bare_tiled_layer_returns_the_frozen_layer():
    layer = TiledConv2d(4, 8, 3)
    frozen = freeze(layer)
    assert isinstance(frozen, FrozenTiledConv2d)
    assert not frozen.training
    assert frozen.tiled_tensor() == layer.tiled_tensor()


def test_a_converted_cnn_keeps_its_outputs_when_frozen(single_thread):
    model, x = cnn(), torch.randn(4, 3, 8, 8)
    report = tile_model(model, 4, min_size=300)
    assert [layer.p for layer in report.layers] == [1, 4, 4, 4]
    model(x)  # moves the batch statistics away from their start
    model.eval()
    with torch.no_grad():
        before = model(x)
        after = freeze(model)(x)
    assert before.shape == (4, 10)
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)


# In eval mode without gradients PyTorch's transformer blocks would read their linear layers'
# dense weights and never call them.


def test_a_transformer_block_calls_its_tiled_layers_when_it_only_infers(monkeypatch):
    block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    tile_model(block, 4, min_size=0)
    freeze(block)
    # Not a hook: PyTorch takes the ordinary path wherever there is one.
    called, forward = [], FrozenTiledLinear.forward
    monkeypatch.setattr(
        FrozenTiledLinear, "forward", lambda self, x: called.append(self) or forward(self, x)
    )
    with torch.no_grad():
        block(torch.randn(2, 5, 16))
    assert called == [block.linear1, block.linear2]


def test_a_transformer_with_a_padding_mask_keeps_its_outputs(single_thread):
    block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(block, 2).eval()
    tile_model(model, 4, min_size=0)
    x, padding = torch.randn(2, 5, 16), torch.arange(5) >= torch.tensor([[4], [3]])
    expected = model(x, src_key_padding_mask=padding)
    with torch.no_grad():
        actual = freeze(model)(x, src_key_padding_mask=padding)
    torch.testing.assert_close(actual[~padding], expected[~padding])
