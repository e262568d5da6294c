"""Names that nothing has, also where thousands of branches call theirs the same."""

from __future__ import annotations

from onnx import helper

from tbn_tvm.frontend.onnx.fresh_names import FreshNames
from tbn_tvm.frontend.onnx.graph import Graph


def test_a_name_is_given_once():
    graph = Graph("g", 18, 10, [helper.make_node("Relu", ["x"], ["c"])], [], [])
    names = FreshNames(graph)
    assert [names.like(name) for name in ("c", "b", "b", "c")] == ["c_1", "b", "b_1", "c_2"]


def test_many_of_one_name():
    names = FreshNames(Graph("g", 18, 10, [], [], []))
    assert len({names.like("c") for _ in range(50_000)}) == 50_000
