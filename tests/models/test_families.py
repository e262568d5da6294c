"""Every architecture, at its small sizes, computes on every kind of target what PyTorch does.

A new entry of the registry is tested by being there.
"""

from dataclasses import dataclass

import numpy as np
import pytest

import tbn_tvm
from tbn_tvm.compiler import Imported, import_model
from tbn_tvm.micro import Session
from tbn_tvm.models.registry import MODELS, Model
from tbn_tvm.testing import cuda_emulator
from tbn_tvm.testing.emulated_model import EmulatedModel

BOARD = "mps2-an386"
"""A Cortex-M4F."""


def families() -> list[Model]:
    """The registry's first entry of each architecture: sizes of one share their small variant."""
    found: dict[tuple, Model] = {}
    for model in MODELS.values():
        key = model.factory, str(model.small), model.small_input_shapes
        found.setdefault(key, model)
    return list(found.values())


@dataclass
class Case:
    """A small variant, imported with a free batch, two samples and PyTorch's outputs for them."""

    model: Imported
    inputs: list[np.ndarray]
    expected: list[np.ndarray]

    def check(self, outputs) -> None:
        """Equal to PyTorch within 1e-4 of the largest output."""
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        for y, expected in zip(outputs, self.expected, strict=True):
            assert y.shape == expected.shape
            assert np.abs(y - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.fixture(scope="module", params=families(), ids=lambda model: model.name)
def case(request) -> Case:
    """Each architecture, tiled, frozen, exported and imported."""
    model = request.param.reduced()
    program = model.program()
    inputs = model.example_inputs(batch=2)
    outputs = program.module()(*inputs)
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    return Case(
        import_model(program, name="net"),
        [x.numpy() for x in inputs],
        [y.detach().numpy() for y in outputs],
    )


def test_its_layers_are_tiled(case):
    assert 4 in {layer.p for layer in case.model.layers}
    assert None not in {layer.p for layer in case.model.layers}


def test_it_runs_on_a_cpu(case):
    case.check(tbn_tvm.compile(case.model, "llvm").run(*case.inputs))


@pytest.mark.skipif(cuda_emulator.compiler() is None, reason="needs g++")
def test_its_cuda_source_computes_the_same(case):
    kernels = EmulatedModel(case.model.mod, {"kind": "cuda", "arch": "sm_80"}, batch=2)
    case.check(kernels(*case.inputs))


@pytest.mark.emulator
def test_it_runs_on_a_microcontroller(case, tmp_path):
    project = tbn_tvm.compile(case.model, BOARD)
    with Session(project.save(tmp_path / "net")) as session:
        case.check(session.run(*case.inputs))
