"""``tbn-tvm export``."""

import json

import pytest
import torch

from tbn_tvm.cli.main import main
from tbn_tvm.nn import TiledLinear, freeze
from tbn_tvm.testing.every_layer import with_dynamic_batch

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SMALLEST = onnx.parser.parse_model(
    '<ir_version: 8, opset_import: ["": 18]> main (float[2] x) => (float[2] y) { y = Relu (x) }'
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved program of one tiled layer."""
    torch.manual_seed(0)
    program = with_dynamic_batch(
        freeze(torch.nn.Sequential(TiledLinear(12, 8, p=4))), (torch.zeros(2, 12),)
    )
    path = tmp_path_factory.mktemp("saved") / "tiny.pt2"
    torch.export.save(program, path)
    return path


def test_a_saved_program_becomes_a_file_named_after_it(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(saved), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    file = onnx.load("tiny.onnx")
    assert [node.name for node in file.graph.node] == ["0"], "names survive saving"
    assert report["model"] == "tiny.onnx"
    assert report["bytes"] == (tmp_path / "tiny.onnx").stat().st_size
    assert report["layers"] == [{"name": "0", "shape": [8, 12], "p": 4, "nbytes": 3 + 4 * 4}]
    assert report["tiled_bytes"] == 19
    assert report["difference"] < 1e-6


def test_the_table_says_what_was_not_compared(saved, tmp_path, capsys):
    path = tmp_path / "dense.onnx"
    assert main(["export", str(saved), "-o", str(path), "--form", "dense", "--no-check"]) == 0
    printed = capsys.readouterr()
    assert "not compared: not asked for" in printed.out
    assert "translating ...\nchecking ...\n" in printed.err
    assert [node.op_type for node in onnx.load(path).graph.node] == ["MatMul", "Add"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nothing.pt2"], 1, "nothing.pt2: no such file"),
        (["{saved}", "-o", "model.bin"], 2, "a name that ends in .onnx"),
        (["{saved}", "--opset", "16"], 2, "opset 16: expected 17 or newer"),
        (["{saved}", "-o", "folder.onnx"], 2, "is a folder"),
        (["folder.onnx/model.onnx"], 2, "is ONNX already"),
    ],
)
def test_a_bad_request_is_refused_and_leaves_nothing(
    saved, tmp_path, monkeypatch, capsys, arguments, status, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.onnx").mkdir()
    onnx.save(SMALLEST, tmp_path / "folder.onnx" / "model.onnx")
    arguments = [text.format(saved=saved) for text in arguments]
    assert main(["export", *arguments]) == status
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]
