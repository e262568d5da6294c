"""What each command does with good input, as a user or a script sees it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import tbn_tvm
from tbn_tvm.cli.main import main

BOARD = "mps2-an386"
FACTORY = """
import torch

from tbn_tvm.nn import TiledLinear


def make():
    torch.manual_seed(0)
    model = torch.nn.Sequential(TiledLinear(12, 8, p=4), torch.nn.ReLU(), TiledLinear(8, 5, p=2))
    return model, (torch.zeros(2, 12),), ({0: torch.export.Dim("batch", min=1, max=4096)},)
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A folder with a small model, a factory of it, its artifact, and labelled inputs."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "small_models.py").write_text(FACTORY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        program = tbn_tvm.load_model("small_models:make")
    torch.export.save(program, folder / "tiny.pt2")
    tbn_tvm.compile(program, name="tiny").save(folder / "tiny.tbn")
    x = np.random.default_rng(0).standard_normal((6, 12)).astype(np.float32)
    scores = program.module()(torch.from_numpy(x)).numpy()
    labels = scores.argmax(1)
    labels[0] = (labels[0] + 1) % 5
    np.savez(folder / "labelled.npz", input=x, labels=labels)
    np.save(folder / "x.npy", x)
    np.save(folder / "scores.npy", scores)
    return folder


@pytest.fixture
def cwd(prepared, tmp_path, monkeypatch) -> Path:
    """A copy of the prepared folder as the working directory."""
    monkeypatch.chdir(shutil.copytree(prepared, tmp_path / "work"))
    return Path.cwd()


def succeed(capsys, *arguments: str) -> str:
    """Run a command that must succeed; its standard output."""
    capsys.readouterr()
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


# -- compile and run -------------------------------------------------------------------------


def test_a_compiled_model_runs(cwd, capsys):
    succeed(capsys, "compile", "tiny.pt2", "-o", "new/model.tbn")
    arguments = "run", "new/model.tbn", "--input", "x.npy", "--output", "y.npz", "--json"
    report = json.loads(succeed(capsys, *arguments))
    scores = np.load("scores.npy")
    np.testing.assert_allclose(report["outputs"]["output"], scores, atol=1e-5)
    assert report["predictions"] == scores.argmax(1).tolist()
    assert "accuracy" not in report
    with np.load("y.npz") as saved:
        assert saved["output"].dtype == np.float32
        np.testing.assert_array_equal(saved["output"], np.float32(report["outputs"]["output"]))
    assert not list(cwd.glob("*.partial"))


def test_labels_in_the_input_give_an_accuracy(cwd, capsys):
    arguments = "run", "tiny.tbn", "--input", "labelled.npz"
    assert json.loads(succeed(capsys, *arguments, "--json"))["accuracy"] == 5 / 6
    assert "83.33% of 6" in succeed(capsys, *arguments)


def test_the_artifact_is_named_after_the_model_by_default(cwd, capsys):
    assert "tiny.tbn" in succeed(capsys, "compile", "tiny.pt2")
    assert "make.tbn" in succeed(capsys, "compile", "small_models:make", "--target", "host")
    assert tbn_tvm.Artifact.load("tiny.tbn").name == "tiny"
    assert tbn_tvm.Artifact.load("make.tbn").target["mcpu"]


def test_the_compilers_json_describes_the_artifact(cwd, capsys):
    report = json.loads(succeed(capsys, "compile", "tiny.pt2", "-o", "a.tbn", "--json"))
    artifact = tbn_tvm.Artifact.load("a.tbn")
    assert report["artifact_bytes"] == Path("a.tbn").stat().st_size
    assert report["library_bytes"] == len(artifact.library)
    assert report["inputs"] == [{"name": "input", "shape": ["batch", 12], "dtype": "float32"}]
    assert report["layers"] == artifact.layers


def test_json_output_is_not_mixed_with_progress(cwd, capsys):
    assert main(["compile", "tiny.pt2", "--json"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["compile", "tiny.pt2"]) == 0
    assert capsys.readouterr().err == "importing ...\nlowering ...\nbuilding ...\n"


def test_a_target_as_json_is_compiled_for(cwd, capsys):
    target = {"kind": "llvm", "mcpu": "generic"}
    succeed(capsys, "compile", "tiny.pt2", "--target", json.dumps(target), "-o", "a.tbn")
    assert tbn_tvm.Artifact.load("a.tbn").target == target


@pytest.mark.parametrize(
    ("target", "phases"),
    [
        ("llvm", ["1_recognise", "2_simplify", "3_lower", "4_plan"]),
        (BOARD, ["1_recognise", "2_simplify", "3_lower", "4_bare_metal"]),
    ],
)
def test_each_phase_dumps_its_ir(cwd, capsys, target, phases):
    arguments = "--target", target, "-o", "out", "--dump-ir", "new/ir"
    succeed(capsys, "compile", "tiny.pt2", *arguments)
    dumps = {path.name: path.read_text() for path in Path("new/ir").iterdir()}
    assert sorted(dumps) == [f"{phase}.py" for phase in phases]
    assert "R.tbn.tiled_dense" in dumps["1_recognise.py"]
    assert "R.tbn.tiled_dense" not in dumps["3_lower.py"]


def test_a_board_gets_a_project_in_place_of_the_last(cwd, capsys):
    arguments = "compile", "tiny.pt2", "--target", BOARD, "--json"
    report = json.loads(succeed(capsys, *arguments))
    assert report["project"] == f"tiny-{BOARD}"
    assert report["memory"]["weights"] > 0
    project = tbn_tvm.micro.Project.load(report["project"])
    assert (project.name, project.board.name) == ("tiny", BOARD)
    Path(report["project"], "users_own.c").touch()
    assert "arena in RAM" in succeed(capsys, *arguments[:-1], "--name", "Other Net")
    assert tbn_tvm.micro.Project.load(report["project"]).digest == project.digest
    assert Path(f"other_net-{BOARD}", "other_net.c").is_file()
    succeed(capsys, *arguments)
    assert Path(report["project"], "users_own.c").exists()
    assert not list(cwd.glob(".tbn-*"))


# -- inspect ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["tiny.pt2", "tiny.tbn", "small_models:make"])
def test_a_model_in_any_form_has_the_same_layers(cwd, capsys, model):
    report = json.loads(succeed(capsys, "inspect", model, "--json"))
    rows = report["layers"]
    assert [row["shape"] for row in rows] == [[8, 12], [5, 8]]
    assert [(row["p"], row["q"]) for row in rows] == [(4, 24), (2, 20)]
    assert [row["nbytes"] for row in rows] == [3 + 16, 3 + 8]
    assert report["totals"]["nbytes"] == 30
    assert rows == json.loads(succeed(capsys, "inspect", "tiny.tbn", "--json"))["layers"]


@pytest.mark.parametrize("model", ["tiny.pt2", "tiny.tbn"])
def test_the_table_has_a_row_a_layer_and_their_sum(cwd, capsys, model):
    table, _, totals = succeed(capsys, "inspect", model).partition("in all")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines()]
    shapes = [row[1] for row in rows if row]
    assert shapes == ["8x12", "5x8", "136"]
    assert rows[-2][0] == "total" and rows[-2][7] == "30"
    assert "544 (18.1 times as much)" in totals


def test_a_picture_is_drawn_on_request(cwd, capsys):
    pytest.importorskip("matplotlib")
    report = json.loads(succeed(capsys, "inspect", "tiny.pt2", "--plot", "tiny.png", "--json"))
    assert report["plot"] == "tiny.png"
    assert Path("tiny.png").read_bytes().startswith(b"\x89PNG")


# -- boards and doctor -----------------------------------------------------------------------


@pytest.mark.emulator
def test_a_model_is_built_for_a_board_into_a_folder_that_stays(cwd, capsys):
    report = json.loads(succeed(capsys, "micro", "build", "tiny.pt2", "--board", BOARD, "--json"))
    project = cwd / f"tiny-{BOARD}"
    assert Path(report["elf"]).resolve() == project / "build" / "firmware.elf"
    assert (project / "build" / "firmware.elf").is_file()
    assert json.loads((project / "build" / "memory.json").read_text()) == report["memory_report"]


def test_boards_are_listed(capsys):
    boards = json.loads(succeed(capsys, "micro", "boards", "--json"))["boards"]
    (board,) = [board for board in boards if board["name"] == BOARD]
    assert board["core"] == "Cortex-M4F"
    assert board["ram_bytes"] == 4_194_304
    table = succeed(capsys, "micro", "boards")
    assert all(board["name"] in table for board in boards)


def test_the_doctor_finds_what_this_machine_has(capsys):
    status = main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    found = {finding["what"]: finding for finding in report["findings"]}
    assert found["TVM and its FFI"]["found"] and found["PyTorch"]["found"]
    assert found["PyTorch"]["detail"] == torch.__version__
    compiler = found["Cortex-M compiler"]
    assert compiler["found"] == (shutil.which("arm-none-eabi-gcc") is not None)
    assert compiler["remedy"].startswith("apt-get install gcc-arm-none-eabi")
    assert report["healthy"] == (status == 0)
    assert report["healthy"] == all(f["found"] for f in report["findings"] if f["required"])


def test_the_doctor_tells_how_to_get_what_is_missing(capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert main(["doctor"]) == 1
    table = capsys.readouterr().out
    (row,) = [line for line in table.splitlines() if "host C++ compiler" in line]
    assert "no" in row and "apt-get install g++" in row


def test_what_binary_would_take_of_a_float_model_is_less_but_not_nothing():
    from tbn_tvm.cli.inspect import _total_rows
    from tbn_tvm.inspect import totals

    sums = {**dict.fromkeys(totals([]), 0), "nbytes": 20_800, "binary_bytes": 662}
    assert dict(_total_rows(sums, None))["bytes at 1 bit a weight"] == "662 (0.032 times as much)"
