"""What models take on boards: emulated instructions, flash, RAM and stack.

Instructions are those of one inference under ``-icount shift=0``: the same on every host, to one
tick of the board's timer. They are no cycles.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

M4 = "mps2-an386"
BOARDS = (M4, "mps2-an500", "mps2-an505", "mps3-an547")
"""Cortex-M4F, M7, M33 and M55."""

LAYER, MLP, AUTOENCODER, RESNET8 = "784 -> 128", "784-128-10", "autoencoder", "ResNet-8"

ALTERNATIVES = {
    LAYER: {
        "reference walk over bits": 2_120_600,
        "float32 dense": 502_640,
        "CMSIS-NN int8": 194_600,
        "sign-add on unique rows": 136_600,
    },
    AUTOENCODER: {"CMSIS-NN int8": 578_960},
    RESNET8: {"CMSIS-NN int8, nine convolutions": 27_498_400},
}
"""Instructions of others for the same shapes on the Cortex-M4, measured once in the same way."""


@dataclass(frozen=True)
class Case:
    """A model on a board."""

    model: str
    board: str
    activations: str


@dataclass(frozen=True)
class Row:
    """What a case took.

    Attributes
    ----------
    model, board, core, activations : str
        What was run.
    instructions : int
        Of one inference, at most.
    flash, weights, ram, arena : int
        Bytes of the firmware with the host's protocol, and of it the model's.
    stack, stack_used : int
        Bytes an inference can take at most, and the firmware was seen to take.
    bare_flash, bare_ram : int
        Bytes of a firmware that speaks with nobody.
    largest_error : float
        Against the host: relative to the largest output in float32, absolute in steps of the
        integer definition with int8 (0: the same to the bit).
    """

    model: str
    board: str
    core: str
    activations: str
    instructions: int
    flash: int
    weights: int
    ram: int
    arena: int
    stack: int
    stack_used: int
    bare_flash: int
    bare_ram: int
    largest_error: float

    def to_dict(self) -> dict:
        """For JSON, with what others take for the same shape on the same core."""
        others = ALTERNATIVES.get(self.model, {}) if self.board == M4 else {}
        return {**asdict(self), "alternatives": others}


def cases() -> list[Case]:
    """The default selection."""
    chosen = [Case(LAYER, M4, "float32"), Case(LAYER, M4, "int8"), Case(LAYER, "microbit", "int8")]
    chosen += [Case(MLP, M4, "float32"), Case(MLP, M4, "int8")]
    for model in (AUTOENCODER, RESNET8):
        chosen += [Case(model, board, "float32") for board in BOARDS]
        chosen += [Case(model, board, "int8") for board in (M4, "mps3-an547")]
    return chosen


def measure(
    selection: list[Case] | None = None, report: Callable[[Row], None] | None = None
) -> list[Row]:
    """Compile, build, emulate and compare.

    Parameters
    ----------
    selection : list of Case, optional
        By default :func:`cases`.
    report : callable, optional
        Called with each row as it is measured.
    """
    rows = []
    for row in _rows(cases() if selection is None else selection):
        rows.append(row)
        if report is not None:
            report(row)
    return rows


def _rows(selection: list[Case]) -> Iterator[Row]:
    made: dict[str, tuple] = {}
    for case in selection:
        if case.model not in made:
            made[case.model] = _model(case.model)
        yield _row(case, *made[case.model])


def _model(name: str) -> tuple:
    """A model in the graph IR, samples for calibration, and PyTorch's module."""
    import torch

    from tbn_tvm.compiler import import_model
    from tbn_tvm.models import mlperf_tiny
    from tbn_tvm.nn import TiledLinear, freeze

    torch.manual_seed(0)
    if name == AUTOENCODER:
        module, (x,) = mlperf_tiny.autoencoder_example()
    elif name == RESNET8:
        module, (x,) = mlperf_tiny.resnet8_example()
    elif name == LAYER:
        module, x = torch.nn.Sequential(TiledLinear(784, 128, bias=False, p=4)), None
    else:
        module = torch.nn.Sequential(
            TiledLinear(784, 128, bias=False, p=4),
            torch.nn.ReLU(),
            TiledLinear(128, 10, bias=False, p=1),
        )
        x = None
    x = torch.rand(1, 784) if x is None else x
    samples = torch.rand(8, 784) if x.shape[1:] == (784,) else torch.randn(8, *x.shape[1:])
    program = torch.export.export(freeze(module), (x,))
    return import_model(program, name="net"), samples.numpy(), program.module()


def _row(case: Case, imported, samples: np.ndarray, module) -> Row:
    import torch

    from tbn_tvm.compiler import compile as compile_model
    from tbn_tvm.micro import Session, build
    from tbn_tvm.micro.quantization import Calibration

    calibration = None
    if case.activations == "int8":
        calibration = Calibration({imported.signature.inputs[0].name: samples})
    x = samples[:1]
    with tempfile.TemporaryDirectory(prefix="tbn_tvm_") as folder:
        project = compile_model(imported, case.board, calibration=calibration)
        path = project.save(Path(folder) / "project")
        bare = build(path, protocol="none")
        with Session(path) as session:
            y = session.run(x)
            statistics, built = session.statistics, session.build_report
    if calibration is None:
        expected = module(torch.from_numpy(x)).detach().numpy()
        error = float(np.abs(y - expected).max() / np.abs(expected).max())
    else:
        quantized = calibration.quantized(imported)
        scale = quantized.tensors[quantized.outputs[0]].scale
        error = float(np.abs(y - quantized.run(x)[0]).max() / scale)
    return Row(
        case.model,
        case.board,
        project.board.core,
        case.activations,
        max(statistics.instructions),
        built.flash,
        built.weights,
        built.ram,
        built.arena,
        built.stack.model,
        statistics.stack_used,
        bare.flash,
        bare.ram,
        error,
    )
