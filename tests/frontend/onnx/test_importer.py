"""Imported models compute what ONNX Runtime computes, and their tiles are found."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import defs, helper, inliner

import tbn_tvm
from tbn_tvm.export.functions import DOMAIN, tiled_function
from tbn_tvm.frontend.onnx import prepare
from tbn_tvm.importing import import_model
from tbn_tvm.inspect import tiled_tensor

RNG = np.random.default_rng(0)


def agree(models, model, **feeds):
    """Compile for llvm, run, and compare with ONNX Runtime; returns the imported model."""
    imported = import_model(prepare(model))
    results = tbn_tvm.compile(imported).run(feeds)
    results = results if isinstance(results, tuple) else (results,)
    for expected, result in zip(models.expected(model, **feeds), results, strict=True):
        assert result.dtype == expected.dtype
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    return imported


def tilings(imported) -> list:
    """The weights of a module's tiled products, in order."""
    block = imported.mod["main"].body.blocks[0]
    calls = [b.value for b in block.bindings if "tbn.tiled" in str(getattr(b.value, "op", ""))]
    return [tiled_tensor(call) for call in calls]


def tiled_by(imported):
    """The p of each product in order; products of one weight share a row of the layers."""
    by_product = {number: row.p for row in imported.layers for number in row.products}
    return [by_product[number] for number in sorted(by_product)]


def test_weights_of_products_are_found_however_they_are_stored(models):
    w = models.tiled_weight((16, 32))
    dense = w.expand()
    signs = np.sign(dense)
    alphas = np.abs(dense[:, :1])
    arrays = {
        "rows": dense,
        "columns": np.ascontiguousarray(dense.T),
        "stack": np.ascontiguousarray(dense.T)[None],
        "signs": signs.astype(np.int8),
        "alphas": alphas,
        "flat": signs.reshape(-1).astype(np.float16),
        "scale": alphas.reshape(-1),
        "zero": np.zeros(16, np.int8),
        "shape": np.array([16, 32]),
        "bias": RNG.standard_normal(16).astype("f"),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "rows", "bias"], ["a"], transB=1, alpha=0.5, beta=2.0),
        helper.make_node("Gemm", ["xt", "columns"], ["b"], transA=1),
        helper.make_node("MatMul", ["x", "columns"], ["c"]),
        helper.make_node("Transpose", ["rows"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["d"]),
        helper.make_node("DequantizeLinear", ["signs", "scale", "zero"], ["dq"], axis=0),
        helper.make_node("Gemm", ["x", "dq"], ["e"], transB=1),
        helper.make_node("Cast", ["flat"], ["wide"], to=1),
        helper.make_node("Reshape", ["wide", "shape"], ["matrix"]),
        helper.make_node("Mul", ["matrix", "alphas"], ["scaled"]),
        helper.make_node("Gemm", ["x", "scaled"], ["f"], transB=1),
        helper.make_node("MatMul", ["x3", "stack"], ["g"]),
    ]
    outputs = {name: None for name in "abcdef"} | {"g": None}
    model = models.make(
        nodes,
        {"x": [5, 32], "xt": [32, 5], "x3": [2, 5, 32]},
        {name: [5, 16] for name in "abcdef"} | {"g": [2, 5, 16]},
        arrays,
    )
    x = RNG.standard_normal((5, 32)).astype("f")
    imported = agree(
        models, model, x=x, xt=np.ascontiguousarray(x.T), x3=np.stack([x, 2 * x]).astype("f")
    )
    assert tiled_by(imported) == [4] * len(outputs)
    assert [spec.name for spec in imported.signature.outputs] == list(outputs)
    assert imported.layers[0].name == "rows"
    assert all((tiled.tile == w.tile).all() for tiled in tilings(imported))


def test_convolutions_of_every_kind(models):
    image, line = models.tiled_weight((16, 8, 3, 3)), models.tiled_weight((8, 4, 3))
    grouped = models.tiled_weight((16, 2, 3, 3), p=2)
    arrays = {"image": image.expand(), "line": line.expand(), "grouped": grouped.expand()}
    arrays |= {"flat": image.expand().reshape(16, -1), "shape": np.array([16, 8, 3, 3])}
    arrays |= {"bias": RNG.standard_normal(16).astype("f")}
    nodes = [
        helper.make_node("Conv", ["x", "image", "bias"], ["a"], auto_pad="SAME_UPPER"),
        helper.make_node(
            "Conv", ["x", "image"], ["b"], pads=[0, 1, 2, 1], strides=[2, 1], dilations=[1, 2]
        ),
        helper.make_node("Conv", ["x", "grouped"], ["c"], group=4, auto_pad="VALID"),
        helper.make_node("Conv", ["x", "image"], ["d"], auto_pad="SAME_LOWER", strides=[2, 2]),
        helper.make_node("Reshape", ["flat", "shape"], ["kernel"]),
        helper.make_node("Conv", ["x", "kernel"], ["e"]),
        helper.make_node("Conv", ["s", "line"], ["f"], pads=[1, 0]),
    ]
    shapes = {"a": [1, 16, 8, 8], "b": [1, 16, 4, 6], "c": [1, 16, 6, 6], "d": [1, 16, 4, 4]}
    shapes |= {"e": [1, 16, 6, 6], "f": [1, 8, 9]}
    model = models.make(nodes, {"x": [1, 8, 8, 8], "s": [1, 4, 10]}, shapes, arrays)
    imported = agree(
        models,
        model,
        x=RNG.standard_normal((1, 8, 8, 8)).astype("f"),
        s=RNG.standard_normal((1, 4, 10)).astype("f"),
    )
    assert tiled_by(imported) == [4, 4, 2, 4, 4, 4]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_in_16_bits_are_found_as_stored(models, dtype):
    w = models.tiled_weight((16, 32))
    stored = w.expand().astype(np.dtype(dtype) if dtype == "float16" else _bfloat16())
    nodes = [
        helper.make_node("Cast", ["w"], ["wide"], to=1),
        helper.make_node("Gemm", ["x", "wide"], ["y"], transB=1),
    ]
    model = models.make(nodes, {"x": [1, 32]}, {"y": [1, 16]}, {"w": stored})
    (found,) = tilings(import_model(prepare(model)))
    assert (found.tile == w.tile).all()
    np.testing.assert_array_equal(found.expand(), stored.astype(np.float32))


def test_a_half_precision_model_keeps_alphas_apart_that_differ_by_one_step(models):
    signs = RNG.random(128) < 0.5
    alphas = np.array([1, np.nextafter(np.float16(1), np.float16(2))], np.float16)
    w = tbn_tvm.TiledTensor.from_signs(signs, alphas, (8, 32))
    model = models.make(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)],
        {"x": ("FLOAT16", [1, 32])},
        {"y": ("FLOAT16", [1, 8])},
        {"w": w.expand(np.float16)},
    )
    (found,) = tilings(import_model(prepare(model)))
    assert found == w


def _bfloat16():
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


@pytest.fixture(scope="module")
def with_functions(models):
    dense, conv = models.tiled_weight((16, 32), p=8), models.tiled_weight((32, 4, 3, 3), p=2)
    nodes = [
        helper.make_node(
            "TiledConv",
            ["image", "conv.tile", "conv.alpha"],
            ["features"],
            domain=DOMAIN,
            shape=[32, 4, 3, 3],
            p=2,
            strides=[1, 2],
            pads=[1, 0, 1, 1],
            dilations=[1, 1],
            group=2,
        ),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["vector"]),
        helper.make_node(
            "TiledLinear",
            ["vector", "fc.tile", "fc.alpha", "fc.bias"],
            ["scores"],
            domain=DOMAIN,
            shape=[16, 32],
            p=8,
        ),
    ]
    arrays = {"conv.tile": conv.tile, "conv.alpha": conv.alphas, "fc.tile": dense.tile}
    arrays |= {"fc.alpha": dense.alphas, "fc.bias": RNG.standard_normal(16).astype("f")}
    model = models.make(
        nodes,
        {"image": ["n", 8, 6, 6]},
        {"scores": ["n", 16]},
        arrays,
        imports=[(DOMAIN, 1)],
        functions=[tiled_function("TiledLinear", 18), tiled_function("TiledConv", 18)],
    )
    return model, [conv, dense]


def test_calls_of_our_functions_are_read_without_loss(models, with_functions):
    model, weights = with_functions
    image = RNG.standard_normal((3, 8, 6, 6)).astype("f")
    imported = agree(models, model, image=image)
    assert tilings(imported) == weights
    assert [row.name for row in imported.layers] == ["conv", "fc"]
    assert str(imported.signature.inputs[0]) == "image: float32 (batch, 8, 6, 6)"


def test_functions_that_were_inlined_are_found_by_their_structure(with_functions):
    model, weights = with_functions
    inlined = inliner.inline_local_functions(model)
    imported = import_model(prepare(inlined))
    for found, weight in zip(tilings(imported), weights, strict=True):
        np.testing.assert_array_equal(found.expand(), weight.expand())


def test_a_function_of_our_name_with_another_body_is_read_by_its_body(models, with_functions):
    model, _weights = with_functions
    forged = type(model)()
    forged.CopyFrom(model)
    for function in forged.functions:
        if function.name == "TiledLinear":
            del function.node[:]
            function.node.append(helper.make_node("Relu", ["X"], ["Y"]))
    forged.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 32
    imported = import_model(prepare(forged))
    assert [row.kind for row in imported.layers] == ["tiled_conv2d"]


@pytest.mark.parametrize("opset", range(17, defs.onnx_opset_version() + 1))
def test_every_opset_from_17_up(models, opset):
    w = models.tiled_weight((16, 32))
    axes = {"axes": np.array([1])} if opset >= 18 else {}
    mean = helper.make_node(
        "ReduceMean", ["h", *axes], ["m"], **({} if axes else {"axes": [1]}), keepdims=1
    )
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], transB=1),
        mean,
        helper.make_node("Sub", ["h", "m"], ["c"]),
        helper.make_node("Softmax", ["c"], ["y"], axis=-1),
    ]
    model = models.make(
        nodes, {"x": [2, 32]}, {"y": [2, 16]}, {"w": w.expand()} | axes, opset=opset
    )
    imported = import_model(prepare(model))
    assert [row.p for row in imported.layers] == [4]
    if opset in (17, 18, 21, defs.onnx_opset_version()):
        import onnx.reference

        x = RNG.standard_normal((2, 32)).astype("f")
        (expected,) = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})
        np.testing.assert_allclose(tbn_tvm.compile(imported).run(x), expected, rtol=1e-4)


def test_names_survive_that_are_no_identifiers(models):
    nodes = [
        helper.make_node(
            "Add",
            ["in/0:é", "in.0"],
            [
                "out put",
            ],
        )
    ]
    model = models.make(nodes, {"in/0:é": [2], "in.0": [2]}, {"out put": [2]})
    signature = import_model(prepare(model)).signature
    assert [spec.name for spec in signature.inputs] == ["in/0:é", "in.0"]
    assert [spec.name for spec in signature.outputs] == ["out put"]
