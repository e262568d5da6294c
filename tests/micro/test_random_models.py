"""Random models compute on an emulated Cortex-M4 what the host says they should."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

from tbn_tvm.compiler import import_model
from tbn_tvm.micro.lower import lower_model
from tbn_tvm.micro.quantization import Calibration
from tbn_tvm.nn import freeze
from tbn_tvm.quantize import Scheme
from tbn_tvm.targets import load_board
from tbn_tvm.testing.fleet import run_fleet
from tbn_tvm.testing.random_models import (
    Conv,
    Dense,
    Model,
    Pool,
    build,
    dense_twin,
    models,
)

MODELS, DRAWN, PARTS, FLEET = 200, 240, 4, 25
"""Of those drawn a few are the same."""

BOARD = load_board("mps2-an386")

TOLERANCE = 2e-5
"""Of the largest value that any layer makes: sums of up to 900 float32 terms round to a few
millionths of it, a wrong sign or element shows in hundredths."""


class Candidate:
    """A model ready for the board: lowered, with an input and what should come of it."""

    def __init__(self, model: Model, name: str) -> None:
        module, x = build(model)
        free = model.batch is None
        shapes = ({0: torch.export.Dim("batch", min=1)},) if free else None
        example = x[: 2 if free else model.batch]
        program = torch.export.export(freeze(module), (example,), dynamic_shapes=shapes)
        net = import_model(program, name=name)
        x = x[: model.batch or 1]
        if model.activations == "float32":
            self.lowered = lower_model(net, BOARD)
            self.inputs, (self.expected, scale) = [x.numpy()], _float64(module, x)
            self.tolerance = TOLERANCE * scale
            return
        samples = {net.signature.inputs[0].name: torch.randn(4, *model.shape).numpy()}
        calibration = Calibration(samples, Scheme(model.activations))
        self.lowered = lower_model(net, BOARD, calibration=calibration)
        integers = calibration.quantized(net)
        (tensor,) = (integers.tensors[name] for name in integers.inputs)
        self.inputs = [tensor.quantize(x.numpy())]
        (self.expected,) = integers.run_integers(*self.inputs)
        self.tolerance = 0

    def complaint(self, outputs) -> str | None:
        """What is wrong with the board's outputs."""
        (y,) = outputs
        if y.shape != self.expected.shape:
            return f"shape {y.shape}, expected {self.expected.shape}"
        difference = np.abs(y.astype("float64") - self.expected)
        if (difference <= self.tolerance).all():  # not so for NaN
            return None
        return f"off by {difference.max()}, allowed {self.tolerance}"


def _float64(module, x) -> tuple[np.ndarray, float]:
    """The exact output, and the largest value that any layer makes."""
    twin, largest = dense_twin(module), []
    for child in twin.modules():
        child.register_forward_hook(lambda _m, _x, y: largest.append(float(y.abs().max())))
    with torch.no_grad():
        return twin(x.double()).numpy(), max(largest)


def verdicts(drawn: list[Model], folder) -> dict[Model, str | None]:
    """What is wrong with each model; None where nothing is."""
    found, ready = {}, {}
    for index, model in enumerate(drawn):
        try:
            ready[model] = Candidate(model, f"m{index}")
        except Exception as error:
            found[model] = f"{type(error).__name__}: {error}"
    return {**found, **_tried(ready, folder)}


def _tried(ready: dict[Model, Candidate], folder) -> dict[Model, str | None]:
    """As above; a firmware that fails as a whole is tried in halves."""
    if not ready:
        return {}
    candidates = list(ready.values())
    try:
        outputs = run_fleet(
            [c.lowered for c in candidates], [c.inputs for c in candidates], BOARD, folder
        )
    except Exception as error:
        if len(ready) == 1:
            return {model: f"{type(error).__name__}: {error}" for model in ready}
        items, half = list(ready.items()), len(ready) // 2
        return {**_tried(dict(items[:half]), folder), **_tried(dict(items[half:]), folder)}
    return {
        model: candidate.complaint(made)
        for (model, candidate), made in zip(ready.items(), outputs, strict=True)
    }


@pytest.mark.emulator
@pytest.mark.parametrize("part", range(PARTS))
def test_two_hundred_random_models_agree_with_the_host(part, tmp_path, pytestconfig):
    """Tried many a firmware; only where one is wrong are they drawn once more from the same seed,
    for hypothesis to shrink it, each smaller model in a firmware of its own.
    ``--hypothesis-seed`` draws others."""
    start = int(pytestconfig.getoption("--hypothesis-seed", None) or 0) * PARTS + part
    options = settings(
        max_examples=DRAWN // PARTS,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    drawn: dict[Model, None] = {}
    seed(start)(options(given(models())(lambda model: drawn.setdefault(model))))()
    assert len(drawn) >= MODELS // PARTS
    found, rest = {}, list(drawn)
    while rest:
        found.update(verdicts(rest[:FLEET], tmp_path / "fleet"))
        rest = rest[FLEET:]
    wrong = {model: told for model, told in found.items() if told}
    if not wrong:
        return

    @seed(start)
    @options
    @given(models())
    def agrees(model):
        if model not in found:
            found.update(verdicts([model], tmp_path / "one"))
        assert found[model] is None, f"{model}: {found[model]}"

    agrees()
    # Hypothesis also draws constants of whatever modules are imported, and may draw others now.
    pytest.fail("\n".join(f"{model}: {told}" for model, told in wrong.items()))


FOUND = {
    "GCC 12 left out the call of the last kernel, for restrict and constant arena addresses": Model(
        shape=(5, 22),
        batch=1,
        activations="affine",
        layers=(
            Conv(5, (4,), (1,), (0,), (3,), 5, 10, "tile", False),
            Pool("avg", (3,), (2,), (1,)),
            Conv(15, (5,), (2,), (0,), (1,), 5, 5, "layer", False),
        ),
        seed=6566,
    ),
}
"""Models that random tests have found, and what was wrong with them."""


@pytest.mark.emulator
def test_models_that_were_wrong_once_are_right(tmp_path):
    found = verdicts(list(FOUND.values()), tmp_path / "fleet")
    assert found == dict.fromkeys(FOUND.values())


@pytest.mark.emulator
def test_a_wrong_sign_shows(tmp_path):
    """The comparison can fail: one bit of one tile is another on the board."""
    model = Model((24,), 1, "float32", (Dense(8, 4, "tile", True),), 1)
    candidate = Candidate(model, "m0")
    words = next(c for c in candidate.lowered.program.constants if c.data.dtype == "uint32")
    words.data[0] ^= 1
    (complaint,) = _tried({model: candidate}, tmp_path / "fleet").values()
    assert complaint.startswith("off by")
