"""Attention as one operator, against ONNX's definition; and as PyTorch exports it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from onnx import helper
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from tbn_tvm.errors import FormatError
from tbn_tvm.evaluate import evaluate
from tbn_tvm.frontend.onnx import prepare
from tbn_tvm.importing import import_model
from tbn_tvm.models import vit
from tbn_tvm.nn.base import TiledLayer

NODE = helper.make_node
RNG = np.random.default_rng(0)
KINDS = {"float16": "FLOAT16", "float32": "FLOAT", "float64": "DOUBLE"}


def numbers(*shape, dtype="float32"):
    return RNG.standard_normal(shape).astype(dtype)


def one_node(models, inputs, given, outputs, opset, dtype="float32", **attributes):
    """A model of one Attention; inputs by name, "" for one left out."""
    types = {}
    for name, array in zip(inputs, given, strict=True):
        kind = {"bool": "BOOL", "int64": "INT64"}.get(str(array.dtype), KINDS[dtype])
        types[name] = (kind, list(array.shape))
    node = NODE("Attention", attributes.pop("names", list(inputs)), outputs, **attributes)
    # All outputs have as many axes as the queries.
    shown = {name: (KINDS[dtype], [None] * given[0].ndim) for name in outputs if name}
    return models.make([node], types, shown, opset=opset)


def agrees(model, arrays, rtol=1e-5, atol=1e-6):
    feeds = {value.name: array for value, array in zip(model.graph.input, arrays, strict=True)}
    expected = ReferenceEvaluator(model).run(None, feeds)
    results = evaluate(import_model(prepare(model)), arrays)
    for result, value in zip(results, expected, strict=True):
        assert (result.dtype, result.shape) == (value.dtype, value.shape)
        np.testing.assert_allclose(result, value, rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("groups", "flat", "dtype"),
    [
        (1, False, "float16"),
        (2, False, "float32"),
        (4, False, "float64"),
        (1, True, "float32"),
        (2, True, "float64"),
        (4, True, "float16"),
    ],
)
def test_heads_share_keys(models, groups, flat, dtype):
    q, k, v = numbers(2, 4, 3, 8, dtype=dtype), *(numbers(2, groups, 5, n) for n in (8, 6))
    k, v = k.astype(dtype), v.astype(dtype)
    counts = {}
    if flat:
        q, k, v = (a.transpose(0, 2, 1, 3).reshape(2, a.shape[2], -1) for a in (q, k, v))
        counts = {"q_num_heads": 4, "kv_num_heads": groups}
    model = one_node(models, "qkv", (q, k, v), ["y"], 23, dtype, is_causal=1, softcap=1.5, **counts)
    close = {"float16": 2e-3, "float32": 1e-5, "float64": 1e-12}[dtype]
    agrees(model, [q, k, v], close, close)


@pytest.mark.parametrize("mode", range(4))
@pytest.mark.parametrize("kind", ["bool", "float", "short", "none left"])
def test_masks_and_scores(models, kind, mode):
    q, k, v = numbers(2, 2, 3, 4), numbers(2, 2, 5, 4), numbers(2, 2, 5, 4)
    mask = {
        "bool": RNG.random((3, 5)) < 0.6,
        "float": np.where(RNG.random((2, 1, 3, 5)) < 0.3, -np.inf, numbers(2, 1, 3, 5)),
        "short": numbers(1, 3, 4),
        "none left": np.array([[False] * 5, [True] * 5, [False, True] * 2 + [False]]),
    }[kind]
    mask = mask if mask.dtype == bool else mask.astype(np.float32)
    model = one_node(
        models,
        "qkvm",
        (q, k, v, mask),
        ["y", "", "", "scores"],
        24,
        scale=0.3,
        qk_matmul_output_mode=mode,
    )
    agrees(model, [q, k, v, mask])


@pytest.mark.parametrize("precision", [1, 10, 11, 16])
def test_the_softmax_in_another_precision(models, precision):
    q, k, v = numbers(1, 1, 3, 4), numbers(1, 1, 5, 4), numbers(1, 1, 5, 4)
    model = one_node(models, "qkv", (q, k, v), ["y"], 23, softmax_precision=precision)
    # Weights of bfloat16 have eight bits, and each library rounds its own.
    close = {1: 1e-5, 10: 1e-3, 11: 1e-5, 16: 1e-2}[precision]
    agrees(model, [q, k, v], close, close)


def test_a_past_goes_before_keys_and_values(models):
    arrays = [numbers(2, 4, 3, 8), *(numbers(2, 2, 3, n) for n in (8, 6))]
    arrays += [numbers(2, 2, 2, 8), numbers(2, 2, 2, 6)]
    model = one_node(
        models,
        ["q", "k", "v", "pk", "pv"],
        arrays,
        ["y", "keys", "values"],
        24,
        names=["q", "k", "v", "", "pk", "pv"],
        is_causal=1,
    )
    agrees(model, arrays)


def test_an_outer_cache_is_as_long_as_each_example_says(models):
    arrays = [numbers(3, 2, 3, 4), numbers(3, 2, 6, 4), numbers(3, 2, 6, 4), np.array([6, 2, 3])]
    for causal in (0, 1):
        model = one_node(
            models,
            ["q", "k", "v", "n"],
            arrays,
            ["y"],
            24,
            names=["q", "k", "v", "", "", "", "n"],
            is_causal=causal,
        )
        agrees(model, arrays)


@pytest.mark.parametrize("windows", [(1, -1), (-1, 1), (2, 0)])
def test_windows(models, windows):
    q, k, v = numbers(1, 2, 4, 4), numbers(1, 2, 6, 4), numbers(1, 2, 6, 4)
    left, right = windows
    model = one_node(
        models,
        "qkv",
        (q, k, v),
        ["y"],
        25,
        left_window_size=left,
        right_window_size=right,
    )
    agrees(model, [q, k, v])


def test_masked_infinities_are_harmless(models):
    q, k, v = numbers(1, 1, 2, 4), numbers(1, 1, 3, 4), numbers(1, 1, 3, 4)
    k[..., 2, :] = np.inf
    mask = np.array([[True, True, False]])
    model = one_node(models, "qkvm", (q, k, v, mask), ["y"], 24)
    (y,) = evaluate(import_model(prepare(model)), [q, k, v, mask])
    shorter = one_node(models, "qkv", (q, k[..., :2, :], v[..., :2, :]), ["y"], 24)
    (expected,) = ReferenceEvaluator(shorter).run(
        None, {"q": q, "k": k[..., :2, :], "v": v[..., :2, :]}
    )
    np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_free_batch_and_lengths(models):
    model = models.make(
        [NODE("Attention", ["q", "k", "k"], ["y"], is_causal=1, q_num_heads=2, kv_num_heads=1)],
        {"q": ["b", "rows", 8], "k": ["b", "keys", 4]},
        {"y": [None, None, 8]},
        opset=23,
    )
    mod = import_model(prepare(model))
    for batch, rows, keys in ((1, 3, 2), (2, 4, 7)):
        q, k = numbers(batch, rows, 8), numbers(batch, keys, 4)
        (y,) = evaluate(mod, [q, k])
        (expected,) = ReferenceEvaluator(model).run(None, {"q": q, "k": k})
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shapes", "attributes", "told"),
    [
        ({"q": [1, 3, 2, 4], "k": [1, 2, 2, 4]}, {}, "3 heads of queries, 2 of keys"),
        ({"q": [1, 2, 8], "k": [1, 2, 8]}, {"q_num_heads": 3, "kv_num_heads": 1}, "in 3 heads"),
        ({"q": [1, 1, 2, 4], "k": [1, 1, 2, 4]}, {"scale": -1.0}, "scale -1: expected"),
        ({"q": [1, 1, 2, 4], "k": [1, 1, 2, 4]}, {"softmax_precision": 7}, r"7 \(int64\)"),
        (
            {"q": [1, 1, 2, 4], "k": [1, 1, 3, 4], "m": [2, 1]},
            {},
            "one place for 3 keys.*: expand it",
        ),
    ],
    ids=["heads", "width", "scale", "precision", "mask"],
)
def test_what_attention_does_not_define_is_refused(models, shapes, attributes, told):
    names = ["q", "k", "k", *(["m"] if "m" in shapes else [])]
    node = NODE("Attention", names, ["y"], **attributes)
    model = models.make([node], shapes, {"y": [None] * len(shapes["q"])}, opset=23)
    with pytest.raises(FormatError, match=told):
        import_model(prepare(model))


class FusedAttention(nn.Module):
    """Attention of our transformers, by PyTorch's own operator."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        self.like = like

    def forward(self, x):
        like = self.like
        parts = like.qkv(like.norm(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (like.heads, -1)).transpose(1, 2) for part in parts)
        return like.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def without_our_operators(model: nn.Module) -> nn.Module:
    """The same function of ordinary layers, whose weights are dense."""
    model = copy.deepcopy(model).eval()
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, TiledLayer):
                dense = nn.Linear(*reversed(layer.weight.shape), bias=layer.bias is not None)
                dense.weight.data = torch.from_numpy(layer.tiled_tensor().expand())
                if layer.bias is not None:
                    dense.bias.data = layer.bias.data
                setattr(parent, name, dense)
    return model


@pytest.mark.parametrize("opset", [23, 25])
def test_a_transformer_of_another_exporter_keeps_its_tiles(models, opset):
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 8, "dim": 32, "depth": 1, "heads": 2}
    tiled = vit.vit(4, 64, **sizes, head_dim=16, mlp_dim=64, classes=10)
    model = without_our_operators(tiled)
    for block in model.blocks:
        block[0] = FusedAttention(block[0])
    x = torch.randn(2, 3, 16, 16)
    exported = torch.onnx.export(
        model,
        (x,),
        dynamo=True,
        opset_version=opset,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        verbose=False,
    ).model_proto
    assert [n.op_type for n in exported.graph.node].count("Attention") == 1
    assert next(e.version for e in exported.opset_import if not e.domain) == opset
    imported = import_model(prepare(exported))
    layers = [layer for layer in tiled.modules() if isinstance(layer, TiledLayer)]
    assert [row.p for row in imported.layers] == [layer.p for layer in layers]
    assert max(layer.p for layer in layers) == 4
    (y,) = evaluate(imported, [x[1:].numpy()])
    with torch.no_grad():
        np.testing.assert_allclose(y, model(x[1:]), rtol=1e-4, atol=1e-4)
