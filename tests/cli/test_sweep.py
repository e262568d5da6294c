"""``tbn-tvm sweep``: the table, JSON and the picture."""

import json
from pathlib import Path

import pytest

from tbn_tvm.cli.main import main

FACTORY = """
import torch


def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.Linear(8, 5)), (torch.zeros(2, 12),)
"""


@pytest.fixture(autouse=True)
def cwd(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("swept.py").write_text(FACTORY)


def test_a_table_has_a_row_a_factor_and_says_why_one_is_missing(capsys):
    arguments = ["swept:make", "--p", "2", "5", "--min-size", "50", "--sizes-only"]
    assert main(["sweep", *arguments]) == 0
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "│" in line]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert [row[0] for row in cells] == ["float", "2", "5"]
    assert [row[6] for row in cells] == ["544", "23", "-"]
    assert cells[2][-1] == "5 does not divide the 96 weights of 0"


def test_the_picture_is_named_in_the_json(capsys):
    pytest.importorskip("matplotlib")
    arguments = ["swept:make", "--p", "2", "--min-size", "50", "--sizes-only", "--json"]
    assert main(["sweep", *arguments, "--plot", "sweep.png"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["plot"], told["min_size"], len(told["rows"])) == ("sweep.png", 50, 2)
    assert Path("sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("model", "min_size"), [("swept:make", 64_000), ("models:resnet-8", 0)])
def test_a_small_architecture_is_tiled_from_the_size_it_is_made_for(capsys, model, min_size):
    assert main(["sweep", model, "--p", "2", "--sizes-only", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["min_size"] == min_size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "no-such"], "unknown target 'no-such'"),
        (["--plot", "sweep.txt"], "ends in .png, .pdf, .svg"),
        (["--p", "0", "--sizes-only"], "p = 0"),
    ],
)
def test_wrong_arguments_are_usage_errors(capsys, arguments, message):
    assert main(["sweep", "swept:make", *arguments]) == 2
    assert message in capsys.readouterr().err
