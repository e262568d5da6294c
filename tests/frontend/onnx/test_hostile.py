"""Malformed, huge and hostile ONNX files end in a message, at once and in little memory."""

from __future__ import annotations

import resource

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tbn_tvm.errors import FormatError
from tbn_tvm.evaluate import evaluate
from tbn_tvm.frontend.onnx import load_onnx, prepare
from tbn_tvm.importing import import_model

NODE = helper.make_node


@pytest.fixture(autouse=True)
def little_memory():
    """What is refused is refused before it is made."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def relu(models, shape=(2, 4)):
    return models.make([NODE("Relu", ["x"], ["y"])], {"x": list(shape)}, {"y": list(shape)})


def refused(model, told):
    with pytest.raises(FormatError, match=told):
        import_model(prepare(model))


@pytest.mark.parametrize("keep", [0, 1, 30, -1])
def test_truncated_files(tmp_path, models, keep):
    content = relu(models).SerializeToString()
    (tmp_path / "m.onnx").write_bytes(content[:keep] if keep >= 0 else content[:-1])
    with pytest.raises(FormatError, match=r"m.onnx: "):
        load_onnx(tmp_path / "m.onnx")


def test_files_of_another_kind(tmp_path):
    for content in (b"", b"PK\3\4", b"text\n" * 100, bytes(4096)):
        (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(FormatError, match="not an ONNX model"):
            load_onnx(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ([2**40], r"1,099,511,627,776 elements on 1 axes"),
        ([2**40, 2**40], "elements on 2 axes"),
        ([-1, 4], "axis 0 is -1: expected at least 1, or a name"),
        ([0, 4], "axis 0 is 0"),
        ([1] * 20, "on 20 axes"),
    ],
)
def test_absurd_shapes_of_inputs(models, shape, told):
    refused(relu(models, shape), told)


def test_unknown_rank(models):
    model = relu(models)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    refused(model, "input 'x' is of unknown rank")


BOMBS = {
    "ConstantOfShape": [NODE("ConstantOfShape", ["size"], ["b"])],
    "Expand": [NODE("Expand", ["one", "size"], ["b"])],
    "Tile": [NODE("Tile", ["one", "size"], ["b"])],
    "Range": [NODE("Range", ["zero", "limit", "step"], ["b"])],
    "Pad": [NODE("Pad", ["one", "pads"], ["b"])],
    "steps": [
        NODE("Expand", ["one", "some"], ["s0"]),
        *(NODE("Concat", [f"s{i}"] * 8, [f"s{i + 1}"], axis=0) for i in range(12)),
        NODE("Identity", ["s12"], ["b"]),
    ],
}


@pytest.mark.parametrize("name", BOMBS)
def test_constants_that_grow_without_end(models, name):
    arrays = {"size": np.array([2**40]), "some": np.array([2**20]), "one": np.ones(1, "f")}
    arrays |= {"zero": np.array(0), "limit": np.array(2**40), "step": np.array(1)}
    arrays |= {"pads": np.array([0, 2**40])}
    nodes = [*BOMBS[name], NODE("ReduceMax", ["b"], ["m"], keepdims=0)]
    nodes += [NODE("Cast", ["m"], ["f"], to=1), NODE("Add", ["x", "f"], ["y"])]
    refused(models.make(nodes, {"x": [2]}, {"y": [2]}, arrays), "more memory than|elements")


def test_values_that_grow_without_end_at_run_time(models):
    nodes = [NODE("Expand", ["x", "size"], ["y"])]
    model = models.make(nodes, {"x": [1]}, {"y": [2**40]}, {"size": np.array([2**40])})
    refused(model, "value 'y' has shape|elements")


def doubling(models, depth: int, calls: int):
    functions = [
        helper.make_function(
            "d",
            f"f{level}",
            ["x"],
            ["y"],
            [
                NODE(
                    f"f{level + 1}",
                    ["x" if i == 0 else f"v{i}"],
                    ["y" if i == calls - 1 else f"v{i + 1}"],
                    domain="d",
                )
                for i in range(calls)
            ]
            if level < depth
            else [NODE("Relu", ["x"], ["y"])],
            [helper.make_opsetid("", 18), helper.make_opsetid("d", 1)],
        )
        for level in range(depth + 1)
    ]
    return models.make(
        [NODE("f0", ["x"], ["y"], domain="d")],
        {"x": [2]},
        {"y": [2]},
        functions=functions,
        imports=[("d", 1)],
    )


def test_functions_that_expand_exponentially(models):
    refused(doubling(models, 20, 10), r"more than 50,000 nodes once its functions are inlined")


def test_functions_that_nest_deeply(models):
    refused(doubling(models, 200, 1), "more than 32 deep")


def test_functions_that_call_themselves(models):
    model = doubling(models, 2, 1)
    model.functions[2].node[0].op_type = "f0"
    model.functions[2].node[0].domain = "d"
    refused(model, "functions call themselves: d::f0 -> d::f1 -> d::f2 -> d::f0")


def test_functions_in_use_are_inlined(models):
    imported = import_model(prepare(doubling(models, 2, 3)))
    assert str(imported.signature.outputs[0]) == "y: float32 (2)"


def test_graphs_with_a_cycle(models):
    nodes = [NODE("Add", ["x", "b"], ["a"]), NODE("Relu", ["a"], ["b"])]
    model = models.make(nodes, {"x": [2]}, {"b": [2]})
    refused(model, "topologically sorted")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.__setattr__("raw_data", t.raw_data[:-4]), "does not match shape"),
        (lambda t: t.__setattr__("raw_data", t.raw_data + b"1234"), "does not match shape"),
        (lambda t: t.ClearField("raw_data"), "the data of shape .* is missing"),
        (lambda t: t.dims.append(2**62), r"has shape \(2, 4, 4611686018427387904\)"),
        (lambda t: t.dims.append(-1), "none negative"),
        (lambda t: t.__setattr__("data_type", 99), "unknown element type 99"),
        (lambda t: t.__setattr__("data_type", 8), "strings cannot be compiled"),
        (lambda t: t.__setattr__("name", ""), "expected a name, and each once"),
    ],
)
def test_initialisers_that_contradict_themselves(models, change, told):
    nodes = [NODE("Add", ["x", "w"], ["y"])]
    model = models.make(nodes, {"x": [2, 4]}, {"y": [2, 4]}, {"w": np.ones((2, 4), "f")})
    change(model.graph.initializer[0])
    refused(model, told)


def external(tmp_path, models, **facts):
    nodes = [NODE("Gemm", ["x", "w"], ["y"], transB=1)]
    weight = models.tiled_weight((8, 32))
    model = models.make(nodes, {"x": [1, 32]}, {"y": [1, 8]}, {"w": weight.expand()})
    tensor = model.graph.initializer[0]
    (tmp_path / "w.bin").write_bytes(b"12345678" + tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", "offset": "8", "length": "1024", **facts}.items():
        tensor.external_data.add(key=key, value=value)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_is_read(tmp_path, models):
    assert import_model(external(tmp_path, models)).layers[0].p == 4


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"location": "../w.bin"}, "expected a file in the model's folder"),
        ({"location": "/etc/passwd"}, "expected a file in the model's folder"),
        ({"location": "a/../../w.bin"}, "expected a file in the model's folder"),
        ({"location": "link"}, "is a link"),
        ({"location": "linked/w.bin"}, "is a link"),
        ({"location": "none.bin"}, "cannot be read"),
        ({"location": "."}, "is no regular file"),
        ({"offset": "16"}, "ends at byte 1040, and w.bin has 1032"),
        ({"offset": "-8"}, "external data of 1024 bytes at -8"),
        ({"length": "99999999999"}, "expected 1024 bytes"),
        ({"offset": "x"}, "is no number"),
    ],
)
def test_external_data_elsewhere_or_short(tmp_path, models, facts, told):
    (tmp_path / "link").symlink_to(tmp_path / "w.bin")
    (tmp_path / "linked").symlink_to(tmp_path)
    with pytest.raises(FormatError, match=told):
        load_onnx(external(tmp_path, models, **facts))


def test_unknown_operators_are_named(models):
    nodes = [NODE("Sparkle", ["x"], ["y"], domain="com.example", name="first")]
    model = models.make(nodes, {"x": [2]}, {"y": [2]}, imports=[("com.example", 1)])
    refused(model, r"unknown operators com.example::Sparkle \(first: node 'first'")


def test_control_flow_is_refused(models):
    branch = helper.make_graph(
        [NODE("Relu", ["x"], ["b"])], "b", [], [helper.make_tensor_value_info("b", 1, [2])]
    )
    nodes = [NODE("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
    model = models.make(nodes, {"x": [2], "c": ("BOOL", [])}, {"y": [2]})
    refused(model, r"node 'y' \(If\): its condition depends on the data, and control flow is not")


def test_types_that_nothing_computes_with(models):
    refused(models.make([], {"x": ("STRING", [2])}, {"x": ("STRING", [2])}), "is of object|string")
    refused(models.make([], {"x": ("COMPLEX64", [2])}, {"x": ("COMPLEX64", [2])}), "complex64")


def test_a_dimension_that_cannot_be_free(models):
    nodes = [NODE("MatMul", ["x", "w"], ["y"])]
    model = models.make(nodes, {"x": [2, "k"]}, {"y": [2, 4]}, {"w": np.ones((8, 4), "f")})
    refused(model, "with free dimensions of .*fix those that cannot be free")


def test_opsets_out_of_range(models):
    model = relu(models)
    for version, told in ((16, "opset 16: expected 17 or newer"), (10**6, "knows versions up to")):
        model.opset_import[0].version = version
        refused(model, told)


def test_duplicated_names(models):
    model = relu(models)
    model.graph.input.append(model.graph.input[0])
    refused(model, "input 'x': expected a name, and each once")
    twice = models.make([NODE("Relu", ["x"], ["y"])] * 2, {"x": [2]}, {"y": [2]})
    refused(twice, "used as output names multiple times|SSA")


def test_sparse_initialisers(models):
    model = relu(models)
    values = numpy_helper.from_array(np.ones(1, "f"), "s")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    refused(model, "sparse initialisers are not supported")


def test_attributes_of_no_function(models):
    model = models.make([NODE("Shape", ["x"], ["y"], start=0)], {"x": [2, 4]}, {"y": [1]})
    model.graph.node[0].attribute[0].ref_attr_name = "elsewhere"
    refused(model, "refers to an attribute outside a function")


@pytest.mark.parametrize("kind", ["DequantizeLinear", "QuantizeLinear"])
def test_blocks_longer_than_the_tensor(models, kind):
    """They are filled up, which takes no memory."""
    types = ("INT8", "FLOAT") if kind == "DequantizeLinear" else ("FLOAT", "UINT8")
    model = models.make(
        [NODE(kind, ["x", "s"], ["y"], axis=0, block_size=2**40)],
        {"x": (types[0], [3, 1])},
        {"y": (types[1], [3, 1])},
        {"s": np.full((1, 1), 2, np.float32)},
        opset=21,
    )
    x = np.array([[4], [6], [8]], types[0].lower().replace("float", "float32"))
    (result,) = evaluate(import_model(prepare(model)), [x])
    assert result.ravel().tolist() == ([8, 12, 16] if types[0] == "INT8" else [2, 3, 4])


def test_diagonals_of_inputs_of_any_size(models):
    """What an input claims is made when there is such an input."""
    shape = {"x": ("UINT8", [40_000, 40_000])}
    model = models.make([NODE("EyeLike", ["x"], ["y"])], shape, {"y": ("UINT8", [None, None])})
    import_model(prepare(model))
