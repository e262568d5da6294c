"""The report says of each initialiser what became of it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tbn_tvm.cli.main import main
from tbn_tvm.frontend.onnx import prepare
from tbn_tvm.frontend.onnx.report import report_initialisers

NODE = helper.make_node


def test_each_initialiser_is_told_of_and_why(models, tmp_path, capsys):
    rng = np.random.default_rng(0)
    tiled = models.tiled_weight((16, 32))
    infinite = rng.standard_normal((8, 16)).astype("f")
    infinite[0, 0] = np.inf
    arrays = {
        "tiled": np.sign(tiled.expand()),
        "alpha": np.abs(tiled.expand()[:, :1]),
        "float": rng.standard_normal((16, 16)).astype("f"),
        "levels": rng.choice(np.array([-2, -1, 1, 2], "f"), (16, 16)),
        "infinite": infinite,
        "bias": np.ones(16, "f"),
        "unused": np.ones(3, "f"),
    }
    nodes = [
        NODE("Mul", ["tiled", "alpha"], ["w"]),
        NODE("Gemm", ["x", "w", "bias"], ["a"], transB=1),
        NODE("Gemm", ["a", "float"], ["b"]),
        NODE("MatMul", ["b", "levels"], ["c"]),
        NODE("Gemm", ["c", "infinite"], ["y"], transB=1),
    ]
    model = models.make(nodes, {"x": [1, 32]}, {"y": [1, 8]}, arrays)
    prepared = prepare(model)
    rows = {row.name: row for row in report_initialisers(prepared.graph, prepared.initialisers)}
    assert list(rows) == list(arrays)
    assert (rows["tiled"].tiled, rows["tiled"].p, rows["tiled"].q) == (True, 4, 128)
    assert rows["tiled"].reason == "tiled" and rows["tiled"].alignment == "whole rows"
    assert rows["alpha"].reason == "folded into 'tiled', which is tiled"
    assert "an ordinary float weight" in rows["float"].reason
    assert "of 2 magnitudes, but no tile of signs repeats" in rows["levels"].reason
    assert "infinite or no number" in rows["infinite"].reason
    assert rows["bias"].reason == "not the weight of a product: input 2 of Gemm"
    assert rows["unused"].reason == "nothing uses it"

    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    assert main(["inspect", str(path), "--report"]) == 0
    assert "folded into 'tiled', which is tiled" in capsys.readouterr().out


def test_weights_in_constant_nodes_are_told_of_too(models):
    tiled = models.tiled_weight((16, 32))
    other = np.random.default_rng(0).standard_normal((16, 8)).astype("f")
    nodes = [
        NODE("Constant", [], ["held"], value=numpy_helper.from_array(tiled.expand())),
        NODE("Transpose", ["held"], ["turned"], perm=[1, 0]),
        NODE("MatMul", ["x", "turned"], ["a"]),
        NODE("Constant", [], ["other"], value=numpy_helper.from_array(other)),
        NODE("MatMul", ["a", "other"], ["b"]),
        NODE("Constant", [], ["shape"], value_ints=[8, 1]),
        NODE("Reshape", ["b", "shape"], ["y"]),
    ]
    prepared = prepare(models.make(nodes, {"x": [1, 32]}, {"y": [8, 1]}, {}))
    rows = {row.name: row for row in report_initialisers(prepared.graph, prepared.initialisers)}
    assert list(rows) == ["held", "other"]
    assert (rows["held"].tiled, rows["held"].shape, rows["held"].p) == (True, (16, 32), 4)
    assert "an ordinary float weight" in rows["other"].reason


def test_a_weight_that_takes_the_type_of_the_data_is_told_as_what_it_is(models):
    stored = {"w": models.tiled_weight((16, 32)).expand(), "plain": np.eye(16, dtype="f")}
    nodes = [
        NODE("CastLike", ["w", "x"], ["typed"]),
        NODE("Gemm", ["x", "typed"], ["h"], transB=1),
        NODE("MatMul", ["h", "plain"], ["y"]),
    ]
    model = models.make(nodes, {"x": ("FLOAT", [2, 32])}, {"y": ("FLOAT", [2, 16])}, stored)
    prepared = prepare(model)
    rows = {r.name: r for r in report_initialisers(prepared.graph, prepared.initialisers)}
    assert (rows["w"].tiled, rows["w"].p, rows["w"].reason) == (True, 4, "tiled")
    assert not rows["plain"].tiled
