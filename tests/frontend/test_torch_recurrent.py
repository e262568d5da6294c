"""nn.LSTM, nn.GRU and nn.RNN compute what PyTorch does, on CPUs and on boards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from tbn_tvm.errors import FormatError
from tbn_tvm.evaluate import evaluate
from tbn_tvm.frontend import torch_recurrent
from tbn_tvm.importing import import_model
from tbn_tvm.micro.lower import lower_model
from tbn_tvm.nn import TiledLinear, freeze
from tbn_tvm.targets import load_board
from tbn_tvm.testing.fleet import run_fleet

BATCH, STEPS, INPUTS, HIDDEN = 2, 4, 3, 5


def compared(module: nn.Module, inputs: tuple, axis: int | None = None) -> None:
    """All outputs against PyTorch's, with a free batch along an axis of the first input."""
    torch.manual_seed(1)
    free = axis is not None and (({axis: torch.export.Dim("batch")},),)
    program = torch.export.export(Taking(module), inputs, dynamic_shapes=free or None)
    arrays = [value.numpy() for value in pytree.tree_leaves(inputs)]
    results = evaluate(import_model(program), arrays)
    expected = pytree.tree_leaves(module(*inputs))
    for ours, theirs in zip(results, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-5)


class Taking(nn.Module):
    """Whatever arguments it is given."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments):
        return self.module(*arguments)


@pytest.mark.parametrize(
    ("kind", "options", "free"),
    [
        ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}, True),
        ("LSTM", {"bias": False}, False),
        ("GRU", {"num_layers": 2, "dropout": 0.5}, True),
        ("GRU", {"bidirectional": True, "bias": False}, False),
        ("RNN", {"nonlinearity": "relu", "num_layers": 2}, False),
        ("RNN", {"batch_first": True}, True),
    ],
)
def test_layers_compute_what_pytorch_does(kind, options, free):
    torch.manual_seed(0)
    module = getattr(nn, kind)(INPUTS, HIDDEN, **options).eval()
    first = options.get("batch_first", False)
    x = torch.randn(*((BATCH, STEPS) if first else (STEPS, BATCH)), INPUTS)
    if free:
        return compared(module, (x,), 0 if first else 1)
    layers = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    states = [torch.randn(layers, BATCH, HIDDEN) for _ in range(1 + (kind == "LSTM"))]
    return compared(module, (x, tuple(states) if kind == "LSTM" else states[0]))


@pytest.mark.emulator
def test_a_tiled_layer_behind_an_lstm_runs_on_a_board(tmp_path):
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(INPUTS, 16, batch_first=True)
            self.head = TiledLinear(16, 32, p=4)

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    net, x = freeze(Net().eval()), torch.randn(1, STEPS, INPUTS)
    free = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net, (x.repeat(2, 1, 1),), dynamic_shapes=free)
    imported = import_model(program, name="forecast")
    assert [row.p for row in imported.layers if row.p] == [4]
    expected = net(x).detach().numpy()
    (result,) = evaluate(imported, [x.numpy()])
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    board = load_board("mps2-an386")
    ((result,),) = run_fleet([lower_model(imported, board)], [[x.numpy()]], board, tmp_path)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "training", "message"),
    [
        ({"proj_size": 2}, False, "proj_size is not supported"),
        ({"num_layers": 2, "dropout": 0.5}, True, "drops out at random"),
        ({"num_layers": 3}, False, "12 steps in all: expected at most 10,"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(options, training, message, monkeypatch):
    monkeypatch.setattr(torch_recurrent, "MAX_STEPS", 10)
    module = nn.LSTM(INPUTS, HIDDEN, **options).train(training)
    program = torch.export.export(Taking(module), (torch.randn(STEPS, BATCH, INPUTS),))
    with pytest.raises(FormatError, match=message):
        import_model(program)
