"""Reordered outputs: the model computes what it did, or is left alone with the reason."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tbn_tvm.nn.permute import permute_outputs


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Block(nn.Module):
    """A residual block: the first convolution's order is free, the second's is not."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x):
        return F.relu(x + self.second(F.relu(self.norm(self.first(x)))))


class Forked(nn.Module):
    """One output, two readers."""

    def __init__(self):
        super().__init__()
        self.body, self.left, self.right = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        hidden = torch.relu(self.body(x))
        return self.left(hidden) + self.right(hidden.tanh())


class Twice(nn.Module):
    """A layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(torch.relu(self.body(x))))


class Branching(nn.Module):
    """Control flow that depends on data."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(8, 8)

    def forward(self, x):
        return self.body(x) if x.sum() > 0 else x


class PartlyTraceable(nn.Module):
    """Shapes that are computed with, around a part that is an ordinary chain."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6))
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        samples, tokens, _ = x.shape
        flat = self.body(x).view(samples * int(tokens), -1)
        return self.head(flat)


class Peeking(nn.Module):
    """A part that cannot be traced, and a weight that is read past its module."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6))

    def forward(self, x):
        y = self.body(x) if x.sum() < 1e9 else x
        return y + self.body[0].weight.sum(1)[:6]


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, bias=False),
        nn.BatchNorm2d(12),
        nn.Hardswish(),
        nn.Flatten(),
        nn.Linear(12 * 4, 10),
        nn.BatchNorm1d(10),
        nn.GELU(),
        nn.Dropout(0.5),
        nn.Linear(10, 4),
    )


def temporal():
    return nn.Sequential(
        nn.Conv1d(4, 8, 3), nn.ReLU(), nn.AvgPool1d(2), nn.Conv1d(8, 6, 2), nn.Flatten(1)
    )


def tokens():
    return nn.Sequential(nn.Linear(8, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 4))


def shuffled(layer):
    return torch.randperm(layer.weight.shape[0])


def settle(model, x):
    """Batch statistics and parameters of normalisation as they are after training."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    model.train()
    model(x)
    return model.eval()


@pytest.mark.parametrize(
    ("make", "shape", "moved"),
    [
        (cnn, (4, 3, 8, 8), ["0", "4", "8"]),
        (temporal, (4, 4, 12), ["0"]),
        (tokens, (2, 5, 8), ["0"]),
        (Forked, (4, 5), ["body"]),
        (Block, (2, 6, 5, 5), ["first"]),
        (PartlyTraceable, (2, 3, 6), ["body.0"]),
    ],
)
@torch.no_grad()
def test_the_model_computes_what_it_did(make, shape, moved):
    x = torch.randn(shape)
    model = settle(make().double(), x.double())
    names = {
        m: n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d))
    }
    before = model(x.double())
    weights = {module: module.weight.clone() for module in names}
    outcome = permute_outputs(model, (x.double(),), names, shuffled)
    assert [names[module] for module, reason in outcome.items() if not reason] == moved
    for module in names:
        changed = not torch.equal(module.weight, weights[module])
        assert changed or outcome[module]
    torch.testing.assert_close(model(x.double()), before)


@pytest.mark.parametrize(
    ("make", "shape", "layer", "reason"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 4)), (2, 4), "0", "an output of the model"),
        (Block, (2, 6, 5, 5), "second", "meets other values"),
        (Twice, (2, 8), "body", "called more than once"),
        (Branching, (2, 8), "body", "cannot be traced"),
        (
            lambda: nn.Sequential(nn.Conv1d(4, 4, 1, groups=2), nn.Conv1d(4, 2, 1)),
            (1, 4, 4),
            "0",
            "grouped",
        ),
        (
            lambda: nn.Sequential(nn.Conv1d(4, 4, 1), nn.Conv1d(4, 2, 1, groups=2)),
            (1, 4, 4),
            "0",
            "nothing is known",
        ),
        # The axis that is normalised is not the one that the order is of.
        (
            lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)),
            (2, 6, 4),
            "0",
            "nothing is known",
        ),
        (
            lambda: nn.Sequential(nn.Linear(4, 6), nn.Flatten(), nn.Linear(18, 2)),
            (2, 3, 4),
            "0",
            "",
        ),
    ],
)
def test_a_layer_whose_order_matters_is_left_alone(make, shape, layer, reason):
    model, x = make().eval(), torch.randn(shape)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    target = model.get_submodule(layer)
    outcome = permute_outputs(model, (x,), [target], shuffled)
    assert outcome[target]
    assert reason in outcome[target]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_reader_that_shares_its_weight_is_left_alone():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    outcome = permute_outputs(model, (torch.randn(2, 6),), [model[0]], shuffled)
    assert "shares its parameters" in outcome[model[0]]


@torch.no_grad()
def test_a_use_that_no_graph_shows_is_noticed_by_the_outputs():
    model, x = Peeking(), torch.randn(2, 6)
    before = model(x)
    outcome = permute_outputs(model, (x,), [model.body[0]], lambda _layer: torch.arange(8).flip(0))
    assert outcome[model.body[0]] == "the model would compute something else"
    assert torch.equal(model(x), before)


def test_the_mode_of_every_module_stays():
    model = cnn().train()
    model[1].eval()
    permute_outputs(model, (torch.randn(2, 3, 8, 8),), [model[0]], shuffled)
    assert model[0].training
    assert not model[1].training
