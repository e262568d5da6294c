"""Projects: what a board can run, names, and what saving leaves alone."""

import pytest
import torch
from tvm import tirx as tir

import tbn_tvm
from tbn_tvm.compiler import c_identifier
from tbn_tvm.errors import TbnError, UsageError
from tbn_tvm.micro import Project
from tbn_tvm.micro import program as micro_program
from tbn_tvm.nn import TiledLinear, freeze

BATCH = torch.export.Dim("batch", min=1)


class Function(torch.nn.Module):
    """A tiled layer and what is done with its output."""

    def __init__(self, function):
        super().__init__()
        self.layer = TiledLinear(16, 8, p=4)
        self.function = function

    def forward(self, x):
        return self.function(self.layer(x))


def program(function, shape=(2, 16), dynamic=None):
    """The function exported, by default with a free first axis."""
    return torch.export.export(
        freeze(Function(function)), (torch.zeros(shape),), dynamic_shapes=(dynamic or {0: BATCH},)
    )


@pytest.mark.parametrize(
    ("function", "shape", "axis", "told"),
    [
        pytest.param(lambda y: y - y.mean(0), (2, 16), 0, "depends on the others", id="coupled"),
        pytest.param(lambda y: y.sum(0), (2, 16), 0, "do not share one free", id="reduced"),
        pytest.param(lambda y: y.reshape(-1), (2, 16), 0, "do not share one free", id="merged"),
        pytest.param(lambda y: y.softmax(1), (2, 5, 16), 1, "only the first axis", id="a length"),
    ],
)
def test_what_cannot_run_sample_by_sample_is_refused(function, shape, axis, told):
    made = program(function, shape, {axis: torch.export.Dim("free", min=1)})
    with pytest.raises(UsageError, match=told):
        tbn_tvm.compile(made, "mps2-an386", name="net")
    # With TVM's run time there is no such limit.
    tbn_tvm.compile(made, "llvm")


def test_a_fixed_batch_may_be_coupled():
    made = torch.export.export(freeze(Function(lambda y: y - y.mean(0))), (torch.zeros(3, 16),))
    assert tbn_tvm.compile(made, "mps2-an386", name="net").signature.inputs[0].shape == (3, 16)


def test_what_has_no_form_in_c_is_refused_by_name_and_says_what_to_do():
    told = r"median has no kernel .*calls tvm\.contrib\.sort.*: expected loops .*--target llvm"
    with pytest.raises(TbnError, match=told):
        tbn_tvm.compile(program(lambda y: y.median(1).values), "mps2-an386", name="net")


@pytest.mark.parametrize("error", [TbnError("convert it"), KeyError("ours")])
def test_only_what_tvm_refuses_is_said_to_have_no_kernel(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(micro_program, "lower_kernel", fail)
    with pytest.raises(type(error)) as caught:
        micro_program._as_c(None, "median", "net_median")
    assert caught.value is error

    monkeypatch.setattr(
        micro_program, "lower_kernel", lambda *_: tir.transform.StmtSimplify()(None)
    )
    with pytest.raises(TbnError, match="median has no kernel for bare metal"):
        micro_program._as_c(None, "median", "net_median")


@pytest.mark.parametrize("taken", ["main", "stdint", "tbn_model", "tbn_board", "int", "3d", ""])
def test_names_that_c_or_the_project_needs_are_not_given_to_models(taken):
    assert c_identifier(taken).startswith("model")


def test_saving_again_replaces_the_projects_files_and_nothing_else(tmp_path):
    folder = tmp_path / "out"
    tbn_tvm.compile(program(torch.relu), "mps2-an386", name="first").save(folder)
    (folder / "my_app.c").write_text("int mine;")
    (folder / "build").mkdir()
    (folder / "build" / "firmware.elf").write_text("old")
    tbn_tvm.compile(program(torch.tanh), "mps2-an386", name="second").save(folder)
    assert (folder / "my_app.c").read_text() == "int mine;"
    assert not (folder / "first.c").exists() and not (folder / "build").exists()
    assert Project.load(folder).name == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
