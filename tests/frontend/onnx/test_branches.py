"""``If`` with a constant condition, against ONNX Runtime; what the data decide is refused."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tbn_tvm.errors import FormatError
from tbn_tvm.evaluate import evaluate
from tbn_tvm.frontend.onnx import branches, prepare
from tbn_tvm.importing import import_model

NODE = helper.make_node


def branch(nodes, outputs, arrays=None):
    shown = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    stored = [numpy_helper.from_array(array, name) for name, array in (arrays or {}).items()]
    return helper.make_graph(nodes, "branch", [], shown, stored)


def constant(name, value):
    return NODE("Constant", [], [name], value=numpy_helper.from_array(np.float32(value)))


def agrees(models, model, *arrays):
    prepared = prepare(model)
    results = evaluate(import_model(prepared), list(arrays))
    feeds = {value.name: a for value, a in zip(model.graph.input, arrays, strict=True)}
    for result, expected in zip(results, models.expected(model, **feeds), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-6)
    return [node.op_type for node in prepared.graph.nodes]


@pytest.mark.parametrize("rows", [1, 3])
def test_a_shape_decides(models, rows):
    """What exporters write for a squeeze, with constants and names that both branches use."""
    then = branch(
        [constant("c", 2), NODE("Mul", ["x", "c"], ["t"]), NODE("Add", ["t", "w"], ["y1"])],
        ["y1", "c"],
        {"w": np.float32([1, 2])},
    )
    other = branch(
        [constant("c2", 3), NODE("Sub", ["x", "c2"], ["t2"]), NODE("Add", ["t2", "v"], ["y2"])],
        ["y2", "c2"],
    )
    nodes = [
        NODE("Shape", ["x"], ["s"], start=0, end=1),
        NODE("Equal", ["s", "one"], ["single"]),
        NODE("If", ["single"], ["y", "c3"], then_branch=then, else_branch=other),
        NODE("Relu", ["y"], ["t3"]),
    ]
    model = models.make(
        nodes,
        {"x": [rows, 2]},
        {"t3": [None, None], "c3": []},
        {"one": np.array([1]), "v": np.float32([5, 6])},
    )
    x = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    left = agrees(models, model, x)
    assert "If" not in left and ("Mul" in left) == (rows == 1)


def test_branches_in_branches_and_in_functions(models):
    inner = NODE(
        "If",
        ["off"],
        ["z"],
        then_branch=branch([NODE("Neg", ["t"], ["n"])], ["n"]),
        else_branch=branch([NODE("Exp", ["t"], ["e"])], ["e"]),
    )
    then = branch([NODE("Abs", ["x"], ["t"]), inner], ["z"])
    other = branch([NODE("Identity", ["x"], ["i"])], ["i"])
    opsets = [helper.make_opsetid("", 18)]
    function = helper.make_function(
        "ours",
        "Choose",
        ["x", "on", "off"],
        ["y"],
        [NODE("If", ["on"], ["y"], then_branch=then, else_branch=other)],
        opsets,
    )
    nodes = [
        NODE("Choose", ["x", "on", "off"], ["a"], domain="ours"),
        NODE("Choose", ["a", "off", "off"], ["b"], domain="ours"),
        NODE("Choose", ["b", "on", "on"], ["y"], domain="ours"),
    ]
    model = models.make(
        nodes,
        {"x": [2]},
        {"y": [2]},
        {"on": np.array(True), "off": np.array(False)},
        functions=[function],
        imports=[("ours", 1)],
    )
    (y,) = evaluate(import_model(prepare(model)), [np.float32([1, -2])])
    np.testing.assert_allclose(y, -np.exp([1, 2]), rtol=1e-6)


def test_a_condition_of_the_data_is_refused(models):
    node = NODE(
        "If",
        ["c"],
        ["y"],
        "choice",
        then_branch=branch([NODE("Neg", ["x"], ["n"])], ["n"]),
        else_branch=branch([NODE("Exp", ["x"], ["e"])], ["e"]),
    )
    model = models.make([node], {"x": [2], "c": ("BOOL", [])}, {"y": [2]})
    with pytest.raises(FormatError, match=r"'choice' .If.: its condition depends on the data"):
        prepare(model)


def test_branches_that_lie_deep_are_refused(models, monkeypatch):
    monkeypatch.setattr(branches, "MAX_DEPTH", 8)
    node = NODE("Neg", ["x"], ["n0"])
    other = branch([NODE("Identity", ["x"], ["i"])], ["i"])
    for depth in range(9):
        then = branch([node], [f"n{depth}"])
        node = NODE("If", ["on"], [f"n{depth + 1}"], then_branch=then, else_branch=other)
    model = models.make([node], {"x": [2]}, {"n9": [2]}, {"on": np.array(True)})
    with pytest.raises(FormatError, match="branches lie in one another more than 8 deep"):
        prepare(model)


def test_functions_that_grow_in_branches_are_refused(models):
    functions = []
    for depth in range(20):
        called, domain = (f"F{depth}", "ours") if depth else ("Neg", "")
        graphs = [
            branch([NODE(called, ["x", "on"][: 1 + bool(depth)], [n], domain=domain)], [n])
            for n in ("t", "e")
        ]
        node = NODE("If", ["on"], ["y"], then_branch=graphs[0], else_branch=graphs[1])
        functions.append(
            helper.make_function(
                "ours",
                f"F{depth + 1}",
                ["x", "on"],
                ["y"],
                [node],
                [helper.make_opsetid("", 18), helper.make_opsetid("ours", 1)],
            )
        )
    model = models.make(
        [NODE("F20", ["x", "on"], ["y"], domain="ours")],
        {"x": [2]},
        {"y": [2]},
        {"on": np.array(True)},
        functions=functions,
        imports=[("ours", 1)],
    )
    with pytest.raises(FormatError, match="nodes once its functions are inlined"):
        prepare(model)


def test_a_loop_is_refused(models):
    body = helper.make_graph([], "body", [], [])
    model = models.make(
        [NODE("Loop", ["", "on"], ["y"], "loop", body=body)], {"on": ("BOOL", [])}, {"y": [1]}
    )
    with pytest.raises(FormatError, match=r"'loop' .Loop.: control flow is not supported"):
        prepare(model)
