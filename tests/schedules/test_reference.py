"""The tile-reuse operator against float64 of the dense expansion, and what it computes."""

import numpy as np
import pytest
import torch
import tvm
import tvm_ffi
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm import tirx as tir

from tbn_tvm import op, relay_passes
from tbn_tvm.micro.kernels import lower_loops
from tbn_tvm.relay_passes.fold_batch_norm import scale_alphas
from tbn_tvm.schedules.reference import Product
from tbn_tvm.tiling import Alignment, TiledTensor, _divisors

SETTINGS = {"max_examples": 25, "deadline": None}


def build_module(x_shape, dtype, make_call, output_shape_of=None):
    """A Relax module whose main applies one call to its input."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(x_shape, dtype))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit_output(builder.emit(make_call(x)))
        builder.emit_func_output(y)
    return builder.get()


def run_module(mod, *inputs):
    """The result of a module compiled the stock way."""
    machine = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    return machine["main"](*(tvm.runtime.tensor(value) for value in inputs)).numpy()


def close(actual, expected, bound):
    """Largest error, relative to the largest expected value."""
    scale = max(float(np.abs(expected).max()), 1e-30)
    assert float(np.abs(actual.astype("float64") - expected).max()) <= bound * scale


@st.composite
def weights(draw, min_rank=2, max_rank=2):
    """A tiled tensor of any alignment, with alphas a tile or a layer."""
    m, n = draw(st.integers(1, 24)), draw(st.integers(1, 40))
    p = draw(st.sampled_from(_divisors(m * n)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.sampled_from([1, p]))
    return TiledTensor.from_signs(
        rng.choice([-1, 1], m * n // p), rng.uniform(0.1, 2, count).astype("float32"), (m, n)
    )


@settings(**SETTINGS)
@given(weights(), st.booleans(), st.booleans(), st.integers(1, 5), st.integers(0, 2**31))
def test_dense_of_any_alignment_equals_the_expansion(weight, biased, per_channel, batch, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, weight.n)).astype("float32")
    bias = rng.normal(size=weight.m).astype("float32") if biased else None
    alphas, dense = weight.alphas, weight.expand(np.float64)
    if per_channel:
        # As after folding batch norm: every output channel has a scale of its own.
        scale = rng.normal(size=weight.m)
        product = Product(weight.geometry, weight.alphas.size)
        alphas = scale_alphas(product, weight.alphas, scale).astype("float32")
        dense = dense * scale[:, None]

    mod = build_module(
        (tir.Var("batch", "int64"), weight.n),
        "float32",
        lambda v: op.tiled_dense(
            v,
            relax.const(weight.tile),
            relax.const(alphas),
            None if bias is None else relax.const(bias),
            out_features=weight.m,
            p=weight.p,
        ),
    )
    expected = x.astype("float64") @ dense.T + (0 if bias is None else bias)
    magnitude = np.abs(x).astype("float64") @ np.abs(dense).T + 1
    error = np.abs(run_module(mod, x) - expected) / magnitude
    assert error.max() < 2e-6


@st.composite
def convolutions(draw):
    """A tiled tensor and a window that fits its input."""
    rank = draw(st.sampled_from([1, 2]))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    shape = (
        groups * draw(st.integers(1, 6)),
        draw(st.integers(1, 4)),
        *(draw(st.integers(1, 3)) for _ in range(rank)),
    )
    elements = int(np.prod(shape))
    p = draw(st.sampled_from(_divisors(elements)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weight = TiledTensor.from_signs(
        rng.choice([-1, 1], elements // p),
        rng.uniform(0.1, 2, draw(st.sampled_from([1, p]))).astype("float32"),
        shape,
    )
    window = {
        "strides": [draw(st.integers(1, 2)) for _ in range(rank)],
        "padding": [draw(st.integers(0, 2)) for _ in range(rank)],
        "dilation": [draw(st.integers(1, 2)) for _ in range(rank)],
        "groups": groups,
    }
    extents = [draw(st.integers(6, 9)) for _ in range(rank)]
    return weight, window, extents


@settings(**SETTINGS)
@given(convolutions(), st.booleans(), st.integers(0, 2**31))
def test_convolution_of_any_alignment_equals_the_expansion(convolution, biased, seed):
    weight, window, extents = convolution
    rng = np.random.default_rng(seed)
    channels = weight.shape[1] * window["groups"]
    x = rng.normal(size=(2, channels, *extents)).astype("float32")
    bias = rng.normal(size=weight.m).astype("float32") if biased else None
    build = op.tiled_conv1d if len(extents) == 1 else op.tiled_conv2d
    mod = build_module(
        x.shape,
        "float32",
        lambda v: build(
            v,
            relax.const(weight.tile),
            relax.const(weight.alphas),
            None if bias is None else relax.const(bias),
            out_channels=weight.m,
            kernel_size=list(weight.shape[2:]),
            p=weight.p,
            **window,
        ),
    )
    reference = torch.nn.functional.conv1d if len(extents) == 1 else torch.nn.functional.conv2d
    expected = reference(
        torch.from_numpy(x).double(),
        torch.from_numpy(weight.expand(np.float64)),
        None if bias is None else torch.from_numpy(bias).double(),
        window["strides"],
        window["padding"],
        window["dilation"],
        window["groups"],
    ).numpy()
    close(run_module(mod, x), expected, 3e-6)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_float_types_keep_their_type_and_sum_with_care(dtype):
    rng = np.random.default_rng(0)
    weight = TiledTensor.from_signs(rng.choice([-1, 1], 512 * 4), [0.5, 0.25], (8, 512))
    x = rng.normal(size=(3, 512)).astype(dtype)
    mod = build_module(
        x.shape,
        dtype,
        lambda v: op.tiled_dense(
            v, relax.const(weight.tile), relax.const(weight.alphas), out_features=8, p=2
        ),
    )
    y = run_module(mod, x)
    assert y.dtype == dtype
    # A sum of 512 terms kept in float16 would be off by a percent.
    close(
        y, x.astype("float64") @ weight.expand(np.float64).T, 6e-4 if dtype == "float16" else 1e-7
    )


@pytest.mark.parametrize("lead", [(), (4,), (2, 3)])
def test_any_number_of_leading_axes(lead):
    rng = np.random.default_rng(0)
    weight = TiledTensor.from_signs(rng.choice([-1, 1], 3 * 10), [0.5, 0.25], (6, 10))
    x = rng.normal(size=(*lead, 10)).astype("float32")
    mod = build_module(
        x.shape,
        "float32",
        lambda v: op.tiled_dense(
            v, relax.const(weight.tile), relax.const(weight.alphas), out_features=6, p=2
        ),
    )
    close(run_module(mod, x), x.astype("float64") @ weight.expand(np.float64).T, 1e-6)


# -- what is computed -----------------------------------------------------------------------


def accumulations(func: tir.PrimFunc) -> int:
    """How often a loop nest adds to a value it has stored: its multiply-adds."""

    def count(stmt) -> int:
        if isinstance(stmt, tir.SeqStmt):
            return sum(count(part) for part in stmt.seq)
        if isinstance(stmt, tir.For):
            return int(stmt.extent) * count(stmt.body)
        if isinstance(stmt, tir.AttrStmt):
            return count(stmt.body)
        if isinstance(stmt, tir.BufferStore):
            value = stmt.value
            return int(isinstance(value, tir.Add) and _loads(value.a, stmt))
        assert not isinstance(stmt, tir.IfThenElse), "a condition hides the count"
        return 0

    def _loads(value, store) -> bool:
        return (
            isinstance(value, tvm.ir.TensorLoad)
            and value.source.same_as(store.buffer)
            and all(
                tvm_ffi.structural_equal(a, b)
                for a, b in zip(value.indices, store.indices, strict=True)
            )
        )

    return count(lower_loops()(tvm.IRModule({"main": func}))["main"].body)


def products_of(mod) -> int:
    """Multiply-adds of the reference kernels of a model."""
    lowered = relay_passes.ScheduleDefaults()(relax.transform.LegalizeOps()(mod))
    return sum(
        accumulations(f) for _, f in lowered.functions_items() if isinstance(f, tir.PrimFunc)
    )


@pytest.mark.parametrize("p", [1, 2, 4, 8])
def test_whole_rows_take_p_times_fewer_multiply_adds(p):
    m, n = 16, 24
    weight = TiledTensor.from_signs(np.ones(m * n // p), np.ones(p), (m, n))
    assert weight.alignment is Alignment.WHOLE_ROWS
    mod = build_module(
        (1, n),
        "float32",
        lambda v: op.tiled_dense(
            v, relax.const(weight.tile), relax.const(weight.alphas), out_features=m, p=p
        ),
    )
    assert products_of(mod) == m * n // p


@pytest.mark.parametrize("p", [1, 2, 4, 8])
def test_convolutions_take_p_times_fewer_multiply_adds(p):
    shape, extent = (8, 3, 3, 3), 6
    elements = int(np.prod(shape))
    weight = TiledTensor.from_signs(np.ones(elements // p), np.ones(p), shape)
    mod = build_module(
        (1, 3, extent, extent),
        "float32",
        lambda v: op.tiled_conv2d(
            v,
            relax.const(weight.tile),
            relax.const(weight.alphas),
            out_channels=8,
            kernel_size=[3, 3],
            padding=[1, 1],
            p=p,
        ),
    )
    assert products_of(mod) == elements * extent * extent // p


def test_rows_of_whole_tiles_share_one_dot_product_a_tile():
    m, n, q = 6, 32, 8
    weight = TiledTensor.from_signs(np.ones(q), np.ones(m * n // q), (m, n))
    assert weight.alignment is Alignment.WHOLE_TILES
    mod = build_module(
        (1, n),
        "float32",
        lambda v: op.tiled_dense(
            v, relax.const(weight.tile), relax.const(weight.alphas), out_features=m, p=weight.p
        ),
    )
    # One pass over the input; the alpha mix of four segments is written out, not accumulated.
    assert products_of(mod) == n


def test_ragged_rows_with_one_alpha_compute_each_phase_once():
    m, n, q = 12, 10, 15
    weight = TiledTensor.from_signs(np.ones(q), [0.5], (m, n))
    assert weight.alignment is Alignment.RAGGED
    mod = build_module(
        (1, n),
        "float32",
        lambda v: op.tiled_dense(
            v, relax.const(weight.tile), relax.const(weight.alphas), out_features=m, p=weight.p
        ),
    )
    assert products_of(mod) == weight.geometry.period * n == 3 * n
