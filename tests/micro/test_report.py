"""Memory reports: rows add up, and totals are what the linker's own tools say."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import tbn_tvm
from tbn_tvm import compiler
from tbn_tvm.cli.main import main
from tbn_tvm.errors import ArtifactError, FitError, ToolError, UsageError
from tbn_tvm.micro import Project, build
from tbn_tvm.micro.arena_plot import plot_arena
from tbn_tvm.micro.lower import lower_model
from tbn_tvm.micro.report import (
    REPORT,
    fullest_step,
    layer_rows,
    map_rows,
    memory_report,
    planned_memory,
    stack_rows,
    total_rows,
)
from tbn_tvm.nn import TiledConv2d, TiledLinear, freeze
from tbn_tvm.targets import board_names


class Net(torch.nn.Module):
    """A float convolution, two tiled layers of one shape with a residual sum, and a softmax."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(1, 4, 3)
        self.conv = TiledConv2d(4, 4, 3, padding=1, p=4)
        self.fc1 = TiledLinear(144, 144, p=4, bias=False)
        self.fc2 = TiledLinear(144, 144, p=4, bias=False)
        self.head = TiledLinear(144, 10, p=2)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.conv(x)).flatten(1)
        x = x + torch.relu(self.fc1(x))
        x = x + torch.relu(self.fc2(x))
        return torch.softmax(self.head(x), 1)


@pytest.fixture(scope="module")
def imported():
    """The net in the graph IR."""
    torch.manual_seed(0)
    x = torch.zeros(1, 1, 8, 8)
    return compiler.import_model(torch.export.export(freeze(Net().eval()), (x,)), name="net")


@pytest.fixture(scope="module")
def lowered(imported):
    return lower_model(imported)


@pytest.fixture(scope="module")
def planned(lowered):
    return planned_memory(lowered)


def test_every_layer_has_a_row_in_the_order_of_execution(planned):
    names = [row["layer"] for row in planned["layers"]]
    assert names == ["stem", "conv", "fc1", "fc2", "head"]
    outputs = {row["layer"]: row["output"] for row in planned["layers"]}
    assert outputs == {"stem": 576, "conv": 576, "fc1": 576, "fc2": 576, "head": 40}
    assert all(row["weights"] and row["kernels"] for row in planned["layers"][:3])


def test_weights_and_kernels_belong_to_one_layer_each(lowered, planned):
    for key, things in (
        ("constants", lowered.program.constants),
        ("kernels", lowered.program.kernels),
    ):
        owned = [name for row in planned["layers"] for name in row[key]]
        assert sorted(owned) == sorted(thing.name for thing in things)
    assert sum(row["weights"] for row in planned["layers"]) == planned["weights"]


def test_the_arena_is_fullest_at_some_layer(lowered, planned):
    fullest = fullest_step(lowered)
    assert max(row["arena"] for row in planned["layers"]) == planned["arena_lower_bound"]
    assert sum(buffer.nbytes for buffer in fullest) == planned["arena_lower_bound"]
    assert [b.nbytes for b in fullest] == sorted((b.nbytes for b in fullest), reverse=True)
    for row in planned["layers"]:
        assert row["scratch"] + row["output"] <= planned["arena_lower_bound"] + row["output"]


def test_without_a_firmware_a_report_says_what_the_plan_does(imported):
    project = tbn_tvm.compile(imported, "mps2-an386")
    report = memory_report(project)
    assert not report["built"] and report["stack"] is None and report["flash"]["total"] is None
    assert report["flash"]["weights"] == project.memory["weights"]
    assert all(row[2] == "-" for row in layer_rows(report))
    assert dict(total_rows(report))["arena in RAM"] == project.memory["arena"]
    assert len(map_rows(report)) == len(project.memory["buffers"])


def test_a_project_without_rows_is_of_an_older_version():
    old = SimpleNamespace(memory={"weights": 1, "arena": 4, "arena_lower_bound": 4}, board=None)
    with pytest.raises(ArtifactError, match="compile the model again"):
        memory_report(old)


def map_sizes(path) -> dict[str, int]:
    """Sizes of the sections in a linker's map."""
    found = re.findall(r"^(\.[\w.]+)\s+0x[0-9a-f]+\s+0x([0-9a-f]+)", path.read_text(), re.MULTILINE)
    return {name: int(size, 16) for name, size in found}


def size_sizes(elf) -> dict[str, int]:
    """Sizes of the sections by arm-none-eabi-size."""
    command = ["arm-none-eabi-size", "-A", str(elf)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines() if line.startswith(".")]
    return {name: int(size) for name, size, _address in rows}


@pytest.mark.emulator
@pytest.mark.parametrize(
    ("board", "io"), [*((name, "arena") for name in board_names()), ("mps2-an386", "static")]
)
def test_parts_add_up_to_what_size_and_the_map_say(imported, board, io, tmp_path):
    project = tbn_tvm.compile(imported, board, io=io)
    built = build(project.save(tmp_path / "net"))
    report = memory_report(Project.load(tmp_path / "net"), built)
    flash, ram, layers = report["flash"], report["ram"], report["layers"]
    for sizes in (size_sizes(built.elf), map_sizes(tmp_path / "net/build/firmware.map")):
        sizes = {name: sizes.get(name, 0) for name in (".text", ".ARM.exidx", ".data", ".bss")}
        assert flash["total"] == sizes[".text"] + sizes[".ARM.exidx"] + sizes[".data"]
        assert ram["total"] == sizes[".data"] + sizes[".bss"]
    parts = ("weights", "code", "entry", "firmware", "library", "tables_and_alignment")
    assert sum(flash[part] for part in parts) == flash["total"]
    assert 0 <= flash["tables_and_alignment"] < 1_500
    assert sum(row["weights"] for row in layers) == flash["weights"] == built.weights
    assert sum(row["code"] for row in layers) == flash["code"]
    assert flash["code"] + flash["entry"] == built.model_code
    assert ram["arena"] + ram["io"] + ram["firmware"] == ram["total"]
    assert ram["io"] == project.memory["io"] == (64 * 4 + 10 * 4 if io == "static" else 0)
    assert 0 <= ram["arena"] - project.memory["arena"] < 8
    assert all(row["code"] for row in layers if row["layer"] in ("stem", "conv", "fc1", "head"))
    assert report["stack"]["model"] == built.stack.model > 0
    assert stack_rows(report)[0][0] == "Reset_Handler"
    json.dumps(report)


@pytest.mark.emulator
def test_compile_prints_and_writes_the_report_and_draws_the_arena(example, tmp_path, capsys):
    model, folder = str(example / "mnist_mlp.pt2"), tmp_path / "out"
    arguments = ["compile", model, "--target", "mps2-an386", "-o", str(folder)]
    assert main([*arguments, "--plot", str(tmp_path / "arena.png")]) == 0
    printed = capsys.readouterr().out
    written = json.loads((folder / REPORT).read_text())
    assert written["built"]
    for name, figure in total_rows(written):
        assert re.search(rf"{re.escape(name)} +│ +{figure:,} │", printed), name
    for layer, *figures in layer_rows(written):
        assert re.search(rf"{layer}.*{figures[0]:,} │ +{figures[1]:,} │", printed)
    assert all(buffer in printed for *_, buffer in map_rows(written))
    assert (tmp_path / "arena.png").read_bytes().startswith(b"\x89PNG")
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["memory_report"] == written


def test_compile_without_a_compiler_says_what_is_not_known(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    model, folder = str(example / "mnist_mlp.pt2"), tmp_path / "out"
    assert main(["compile", model, "--target", "mps2-an386", "-o", str(folder)]) == 0
    printed = capsys.readouterr()
    assert "code sizes and stack: unknown without arm-none-eabi-gcc" in printed.err
    assert "arena in RAM" in printed.out and "stack, one inference" not in printed.out
    assert not json.loads((folder / REPORT).read_text())["built"]


def test_a_report_goes_with_the_project_it_is_of(imported, tmp_path):
    project = tbn_tvm.compile(imported, "mps2-an386")
    (project.save(tmp_path / "net") / "build").mkdir()
    (tmp_path / "net" / REPORT).write_text("old")
    project.save(tmp_path / "net")
    assert not (tmp_path / "net" / REPORT).exists()


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_an_arena_is_drawn(imported, suffix, tmp_path):
    report = memory_report(tbn_tvm.compile(imported, "mps2-an386"))
    path = plot_arena(report, tmp_path / "new" / f"arena.{suffix}")
    assert path.stat().st_size > 5_000
    if suffix == "svg":
        assert path.read_text().count('id="patch_') >= len(report["arena"]["buffers"])


def test_what_cannot_be_drawn_is_told_before_compiling(example, capsys, monkeypatch):
    with pytest.raises(UsageError, match=r"ends in \.png"):
        plot_arena({}, "arena.bmp")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ToolError, match="needs matplotlib"):
        plot_arena({}, "arena.png")
    model = str(example / "mnist_mlp.pt2")
    assert main(["compile", model, "--target", "mps2-an386", "--plot", "arena.png"]) == 1
    assert "pip install 'tbn-tvm[plot]'" in capsys.readouterr().err
    for more in (["--plot", "a.png"], ["--io", "static"]):
        assert main(["compile", model, *more]) == 2
        assert "for boards" in capsys.readouterr().err
        assert main(["compile", model, "--export", "lib", *more]) == 2
        assert "not for --export" in capsys.readouterr().err


def test_a_refusal_has_the_table_of_layers(monkeypatch):
    model = torch.nn.Sequential(
        TiledLinear(1024, 1024, p=4), torch.nn.ReLU(), TiledLinear(1024, 8, p=2)
    )
    program = torch.export.export(freeze(model), (torch.zeros(1, 1024),))
    monkeypatch.setenv("PATH", "")  # no compiler is asked
    with pytest.raises(FitError) as refusal:
        tbn_tvm.compile(program, "stm32vldiscovery", name="net", io="static")
    text = str(refusal.value)
    assert re.search(r"RAM: [\d,]+ bytes of arena, 4,128 of inputs and outputs, 1,024 of st", text)
    line = r"(?m)^  {}: [\d,]+ bytes of weights, [\d,]+ of scratch, {} of output, [\d,]+ of arena"
    assert re.search(line.format("0", "4,096"), text)
    assert re.search(line.format("2", "32"), text)
