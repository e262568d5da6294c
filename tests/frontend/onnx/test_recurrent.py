"""LSTM, GRU and RNN in all variants of the standard, against ONNX Runtime and PyTorch."""

from __future__ import annotations

import io
import random

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx.reference import ReferenceEvaluator

from tbn_tvm.errors import FormatError
from tbn_tvm.evaluate import evaluate
from tbn_tvm.frontend.onnx import prepare
from tbn_tvm.frontend.onnx.report import report_initialisers
from tbn_tvm.importing import import_model
from tbn_tvm.micro.lower import lower_model
from tbn_tvm.targets import load_board
from tbn_tvm.testing.fleet import run_fleet

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
FUNCTIONS = {"LSTM": 3, "GRU": 2, "RNN": 1}
ACTIVATIONS = {
    "Affine": "ab",
    "Elu": "a",
    "HardSigmoid": "ab",
    "LeakyRelu": "a",
    "Relu": "",
    "ScaledTanh": "ab",
    "Sigmoid": "",
    "Softplus": "",
    "Softsign": "",
    "Tanh": "",
    "ThresholdedRelu": "a",
}
"""With the parameters that each takes."""

INPUTS = ["X", "W", "R", "B", "lens", "h0", "c0", "P"]


def layer(kind: str, sizes=(4, 2, 3, 5), seed: int = 0, present=("B",), **attrs):
    """Arrays by input, and attributes; sizes are steps, batch, inputs and hidden."""
    rng = np.random.default_rng(seed)
    steps, batch, width, hidden = sizes
    each = 2 if attrs.get("direction") == "bidirectional" else 1
    rows = GATES[kind] * hidden
    shapes = {
        "X": (steps, batch, width),
        "W": (each, rows, width),
        "R": (each, rows, hidden),
        "B": (each, 2 * rows),
        "h0": (each, batch, hidden),
        "c0": (each, batch, hidden),
        "P": (each, 3 * hidden),
    }
    arrays = {name: 0.7 * rng.standard_normal(shape).astype("f") for name, shape in shapes.items()}
    arrays["lens"] = rng.integers(0, steps + 1, batch).astype("i")
    wanted = ("X", "W", "R", *present)
    return {name: arrays[name] for name in INPUTS if name in wanted}, {
        "hidden_size": hidden,
        **attrs,
    }


def model_of(models, kind: str, arrays: dict, attrs: dict, run: list[str], free: bool = False):
    """Arrays of ``run`` are inputs, of a free batch where wanted; the others are constants."""
    names = [name if name in arrays else "" for name in INPUTS]
    while not names[-1]:
        names.pop()
    outputs = ["Y", "Y_h", "Y_c"] if kind == "LSTM" else ["Y", "Y_h"]

    def extents(name):
        shape: list = list(arrays[name].shape)
        if free and name in ("X", "lens", "h0", "c0"):
            shape[1 if name != "lens" and not attrs.get("layout") else 0] = "n"
        return ("INT32" if name == "lens" else "FLOAT", shape)

    return models.make(
        [helper.make_node(kind, names, outputs, **attrs)],
        {name: extents(name) for name in run},
        {name: ["a", "b", "c", "d"][: 4 if name == "Y" else 3] for name in outputs},
        {name: array for name, array in arrays.items() if name not in run},
    )


def drawn(seed: int):
    rng = random.Random(seed)
    kind = rng.choice(list(GATES))
    direction = rng.choice(["forward", "reverse", "bidirectional"])
    attrs: dict = {"direction": direction}
    of_kind = {"LSTM": ["c0", "P"]}.get(kind, [])
    present = [name for name in ["B", "lens", "h0", *of_kind] if rng.random() < 0.5]
    if kind == "LSTM" and rng.random() < 0.5:
        attrs["input_forget"] = 1
    if kind == "GRU" and rng.random() < 0.5:
        attrs["linear_before_reset"] = 1
    if rng.random() < 0.4:
        attrs["clip"] = rng.choice([0.3, 1.0])
    if rng.random() < 0.6:
        count = FUNCTIONS[kind] * (2 if direction == "bidirectional" else 1)
        names = [rng.choice(sorted(ACTIVATIONS)) for _ in range(count)]
        attrs["activations"] = names
        for letter, which in zip("ab", ("alpha", "beta"), strict=True):
            taken = [rng.uniform(0.1, 0.9) for name in names if letter in ACTIVATIONS[name]]
            attrs.update({f"activation_{which}": taken} if taken else {})
    # Short, or states of functions without bounds grow beyond what float32 has.
    sizes = tuple(rng.randint(1, most) for most in (3, 3, 5, 4))
    arrays, attrs = layer(kind, sizes, seed, present, **attrs)
    run = [name for name in arrays if name == "X" or (name not in "WRBP" and rng.random() < 0.5)]
    return kind, arrays, attrs, run, rng


@pytest.mark.parametrize("seed", range(100, 116))
def test_random_layers_compute_what_onnx_runtime_does(models, seed):
    kind, arrays, attrs, run, rng = drawn(seed)
    judged = model_of(models, kind, arrays, attrs, ["X"])
    expected = models.expected(judged, X=arrays["X"])
    free = rng.random() < 0.5 and all(n in run for n in arrays if n in ("X", "lens", "h0", "c0"))
    if rng.random() < 0.4:
        # Which ONNX Runtime refuses.
        attrs = {**attrs, "layout": 1}
        swapped = [name for name in ("X", "h0", "c0") if name in arrays]
        arrays = {**arrays, **{name: arrays[name].swapaxes(0, 1) for name in swapped}}
        expected = [expected[0].transpose(2, 0, 1, 3), *(e.swapaxes(0, 1) for e in expected[1:])]
    imported = import_model(prepare(model_of(models, kind, arrays, attrs, run, free)))
    results = evaluate(imported, [np.ascontiguousarray(arrays[name]) for name in run])
    for ours, theirs in zip(results, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_layers_that_pytorch_exports_compute_what_pytorch_does(kind):
    torch.manual_seed(0)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            cell = getattr(torch.nn, kind)
            self.layers = cell(3, 4, num_layers=2, batch_first=True, bidirectional=True)
            self.head = torch.nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.layers(x)[0][:, -1])

    net, x = Net().eval(), torch.randn(2, 5, 3)
    file = io.BytesIO()
    torch.onnx.export(
        net, (x,), file, dynamo=False, opset_version=17, input_names=["x"], output_names=["y"]
    )
    model = onnx.load_from_string(file.getvalue())
    assert sum(node.op_type == kind for node in model.graph.node) == 2
    (result,) = evaluate(import_model(prepare(model)), [x.numpy()])
    np.testing.assert_allclose(result, net(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "dtype"), [("GRU", "d"), ("LSTM", "e")])
def test_layers_in_other_floats(models, kind, dtype):
    """Against ONNX's reference evaluator, which knows the defaults."""
    arrays, attrs = layer(kind, present=("B", "h0"))
    arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    elements = {"d": "DOUBLE", "e": "FLOAT16"}[dtype]
    outputs = {"Y": (elements, ["t", "d", "b", "h"]), "Y_h": (elements, ["d", "b", "h"])}
    names = ["X", "W", "R", "B", "", "h0"]
    node = helper.make_node(kind, names, list(outputs), **attrs)
    constants = {name: array for name, array in arrays.items() if name != "X"}
    model = models.make([node], {"X": (elements, arrays["X"].shape)}, outputs, constants)
    results = evaluate(import_model(prepare(model)), [arrays["X"]])
    expected = ReferenceEvaluator(model).run(None, {"X": arrays["X"]})
    for ours, theirs in zip(results, expected, strict=True):
        assert ours.dtype == theirs.dtype
        tolerance = {"d": 1e-9, "e": 5e-3}[dtype]
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.emulator
def test_steps_share_their_kernels_and_a_tiled_weight(models, tmp_path):
    """Sixteen steps, on a board too: their kernels and the weight's table are there once."""
    arrays, attrs = layer("LSTM", (16, 1, 8, 16))
    arrays["W"] = models.tiled_weight((64, 8), 4, seed=1).expand()[None]
    arrays["R"] = 0.1 * models.tiled_weight((64, 16), 8, seed=2).expand()[None]
    model = model_of(models, "LSTM", arrays, attrs, ["X"])
    expected = models.expected(model, X=arrays["X"])
    prepared = prepare(model)
    rows = {r.name: r for r in report_initialisers(prepared.graph, prepared.initialisers)}
    assert [rows[name].p for name in "WR"] == [4, 8]

    imported = import_model(prepared, name="shared")
    for ours, theirs in zip(evaluate(imported, [arrays["X"]]), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    board = load_board("mps2-an386")
    lowered = lower_model(imported, board)
    steps = [step.kernel for step in lowered.program.steps if "lstm_step" in step.kernel]
    assert len(steps) == 16 and len(set(steps)) == 1
    ((*outputs,),) = run_fleet([lowered], [[arrays["X"]]], board, tmp_path)
    for ours, theirs in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"direction": "sideways"}, "direction 'sideways' is unknown"),
        ({"activations": ["Sin", "Tanh", "Tanh"]}, "activation 'Sin' is not supported"),
        ({"activations": ["Tanh"]}, "1 activations: expected 3"),
        ({"activations": ["Affine", "Tanh", "Tanh"]}, "needs activation_alpha"),
        ({"activation_alpha": [0.5]}, "has 1 values, and the activations .* take 0"),
        ({"clip": -1.0}, "clip -1.0: expected a positive"),
        ({"hidden_size": 6}, "hidden_size 6, and R is of 5"),
        ({"direction": "bidirectional"}, "W has shape .*: expected"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(models, change, message):
    arrays, attrs = layer("LSTM")
    model = model_of(models, "LSTM", arrays, {**attrs, **change}, ["X"])
    with pytest.raises(FormatError, match=message):
        import_model(prepare(model))


def test_sequences_are_of_fixed_and_bounded_length(models):
    arrays, attrs = layer("GRU", (3000, 1, 1, 1))
    with pytest.raises(FormatError, match="more than 2048 steps"):
        import_model(prepare(model_of(models, "GRU", arrays, attrs, ["X"])))
    arrays, attrs = layer("GRU")
    model = model_of(models, "GRU", arrays, attrs, ["X"])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "time"
    with pytest.raises(FormatError, match="free length"):
        import_model(prepare(model))
    arrays, attrs = layer("GRU", present=("lens",))
    arrays["lens"][0] = 5
    with pytest.raises(FormatError, match=r"sequence_lens from .* to 5: expected 0 to 4"):
        import_model(prepare(model_of(models, "GRU", arrays, attrs, ["X"])))
