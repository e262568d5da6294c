"""Profiles: a row a step that adds up to the run, and the first step that differs from the host."""

import json

import numpy as np
import pytest
import torch

import tbn_tvm
from tbn_tvm.cli.main import main
from tbn_tvm.errors import DeviceError, ToolError
from tbn_tvm.micro import Session, build
from tbn_tvm.micro.profile import Reference, difference, profile
from tbn_tvm.micro.transport import EmulatedBoard
from tbn_tvm.nn import TiledConv2d, TiledLinear, freeze
from tbn_tvm.targets import load_board


@pytest.mark.parametrize(
    ("expected", "actual", "dtype", "found"),
    [
        ([1, 2], [1, 2], "int8", (0, 0, False)),
        ([1, -4], [1, -3], "int8", (1, 0.25, True)),
        ([0, 2**32 - 1], [1, 2**32 - 1], "uint32", (1, 1 / (2**32 - 1), True)),
        ([True, False], [True, True], "bool", (1, 1, True)),
        ([1.0, 4.0], [1.0001, 4.0], "float32", (1e-4, 2.5e-5, False)),
        ([1.0, 4.0], [1.001, 4.0], "float32", (1e-3, 2.5e-4, True)),
        ([np.nan, np.inf], [np.nan, np.inf], "float32", (0, 0, False)),
        ([1.0, 2.0], [np.nan, 2.0], "float32", (np.inf, np.inf, True)),
        ([], [], "float32", (0, 0, False)),
    ],
)
def test_the_difference_of_two_tensors(expected, actual, dtype, found):
    data = (np.array(values, dtype).tobytes() for values in (expected, actual))
    away, relative, differs = difference(*data, dtype)
    assert (away, relative) == pytest.approx(found[:2], rel=1e-2, abs=1e-12)
    assert differs is found[2]


class ConvNet(torch.nn.Module):
    """A tiled convolution, pooling and two tiled linear layers."""

    def __init__(self):
        super().__init__()
        self.conv = TiledConv2d(1, 8, 3, padding=1, p=4)
        self.fc1 = TiledLinear(8 * 4 * 4, 32, p=4)
        self.fc2 = TiledLinear(32, 10, p=2)

    def forward(self, x):
        x = torch.nn.functional.max_pool2d(torch.relu(self.conv(x)), 2)
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


@pytest.fixture(scope="module")
def program():
    """The net, trained by nobody."""
    torch.manual_seed(0)
    return torch.export.export(freeze(ConvNet()), (torch.randn(1, 1, 8, 8),))


@pytest.fixture(scope="module")
def x():
    """An input of the net."""
    return np.random.default_rng(0).normal(size=(1, 1, 8, 8)).astype("float32")


@pytest.mark.emulator
@pytest.mark.parametrize("board", ["mps2-an386", "microbit"])
@pytest.mark.parametrize("io", ["arena", "static"])
def test_steps_add_up_to_the_run_and_equal_the_hosts(board, io, program, x, tmp_path):
    folder = tbn_tvm.compile(program, board, name="net", io=io).save(tmp_path / "net")
    found = profile(folder, {"x": x}, compare=True)
    tick = float(load_board(board).instructions_per_tick)
    assert found.resolution == tick
    # Between the first hook and the last there is one hook a step.
    hooks = len(found.steps) * found.hook
    assert found.instructions + hooks == pytest.approx(found.whole, abs=len(found.steps) * 4)
    with Session(folder) as session:
        session.run(x)
    assert found.instructions == pytest.approx(session.statistics.instructions[0], abs=3 * tick)
    rows = {row["layer"]: row for row in found.layers()}
    assert [name for name in rows if name in ("conv", "fc1", "fc2")] == ["conv", "fc1", "fc2"]
    assert sum(row["instructions"] for row in rows.values()) == pytest.approx(found.instructions)
    assert rows["fc1"]["instructions"] > rows["fc2"]["instructions"] > 2 * tick
    assert all(step.cycles is None for step in found.steps)  # the emulator counts none
    assert found.first_difference is None
    assert all(step.difference <= 1e-5 for step in found.steps)


@pytest.mark.emulator
@pytest.mark.parametrize("layer", ["conv", "fc1", "fc2"])
def test_a_damaged_weight_is_found_in_its_layer(layer, program, x, tmp_path):
    from elftools.elf.elffile import ELFFile

    folder = tbn_tvm.compile(program, "mps2-an386", name="net").save(tmp_path / "net")
    build(folder, "profile")
    elf = folder / "build" / "firmware-profile.elf"
    memory = json.loads((folder / "metadata.json").read_text())["memory"]
    (row,) = (row for row in memory["layers"] if row["layer"] == layer)
    with elf.open("rb") as file:
        image = ELFFile(file)
        table = image.get_section_by_name(".symtab")
        # What is small may stand in the code instead.
        found = (table.get_symbol_by_name(name) for name in row["constants"])
        symbol = max((s for (s,) in filter(None, found)), key=lambda s: s["st_size"])
        section = image.get_section(symbol["st_shndx"])
        offset = section["sh_offset"] + symbol["st_value"] - section["sh_addr"]
    data = bytearray(elf.read_bytes())
    # Of a float the exponent: a last bit may be taken for rounding.
    source = (folder / "net.c").read_text()
    is_float = f"static const float {symbol.name}[" in source
    data[offset + (3 if is_float else 0)] ^= 0x40 if is_float else 0x01
    damaged = tmp_path / "damaged.elf"
    damaged.write_bytes(data)
    board = EmulatedBoard(load_board("mps2-an386"), damaged)
    found = profile(folder, {"x": x}, compare=True, runs=1, transport=board)
    assert found.first_difference is not None and found.first_difference.layer == layer
    assert found.to_dict()["first_difference"] == layer


@pytest.mark.emulator
def test_firmware_that_was_not_built_for_it_is_not_profiled(program, x, tmp_path):
    folder = tbn_tvm.compile(program, "mps2-an386", name="net").save(tmp_path / "net")
    board = EmulatedBoard(load_board("mps2-an386"), build(folder).elf)
    with pytest.raises(DeviceError, match="refused TIMES"):
        profile(folder, {"x": x}, transport=board)


def test_a_machine_without_a_compiler_cannot_compare(program, monkeypatch):
    project = tbn_tvm.compile(program, "mps2-an386", name="net")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolError, match="C compiler for this machine"):
        Reference(project)


@pytest.mark.emulator
def test_the_command_takes_models_and_projects(program, x, tmp_path, capsys):
    model, folder = tmp_path / "net.pt2", tmp_path / "project"
    torch.export.save(program, model)
    np.save(tmp_path / "x.npy", x)
    command = ["micro", "profile", str(model), "--board", "mps2-an386", "-o", str(folder)]
    assert main([*command, "--compare", "--runs", "2"]) == 0
    told = capsys.readouterr().out
    assert "fc1" in told and "Every step gives what it gives on this machine." in told
    command = ["micro", "profile", str(folder), "--input", str(tmp_path / "x.npy"), "--json"]
    assert main([*command, "--runs", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["layer"] for row in found["layers"]][-1] == "fc2"
    assert found["first_difference"] is None and found["runs"] == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("profile {0}/net.pt2", "to compile a model first, name a --board"),
        ("build {0}/none -o {0}/x", "only for what is compiled"),
        ("run {0}/net.pt2 --input x.npy --board nonesuch", "unknown board 'nonesuch'"),
        ("profile {0}/none", "no such folder"),
    ],
)
def test_what_cannot_be_compiled_is_refused(arguments, told, tmp_path, capsys):
    (tmp_path / "net.pt2").write_bytes(b"")
    assert main(["micro", *arguments.format(tmp_path).split()]) != 0
    assert told in capsys.readouterr().err
