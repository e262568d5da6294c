"""Kernels for Cortex-M as C, of any shape and alignment, against the definition in float64."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tbn_tvm.schedules.cortex_m import KERNELS, RULES
from tbn_tvm.schedules.cortex_m.pieces import tile_words
from tbn_tvm.schedules.reference import Product, Window
from tbn_tvm.schedules.rules import DENSE, Workload, choose
from tbn_tvm.tiling import TiledTensor, _divisors

DTYPES = ("float32", "int8")
ZERO_POINT = -37
# Each example runs a compiler: a failing one is not looked for in simpler forms.
SETTINGS = settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def draw_weight(data, shape, p):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    signs = rng.choice([-1, 1], int(np.prod(shape)) // p)
    return TiledTensor.from_signs(signs, [1.0], shape), rng


def draw_activations(rng, dtype, shape):
    if dtype == "float32":
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(-128, 128, shape).astype(dtype)


def segment_rows(weight, product):
    """Signs of every unique row of each group, cut into segments: (groups, rows, segments, n)."""
    geometry = product.geometry
    flat = np.arange(geometry.m * geometry.n).reshape(geometry.m, geometry.n)
    segment = flat // geometry.q - flat[:, :1] // geometry.q
    if product.segments == 1:
        segment = np.zeros_like(segment)
    signs = weight.signs().reshape(-1)[flat % geometry.q]
    cut = np.stack([np.where(segment == s, signs, 0) for s in range(product.segments)], axis=1)
    by_group = cut.reshape(product.groups, product.group_rows, product.segments, geometry.n)
    return by_group[:, : product.unique_rows]


def centred(x, dtype):
    return x.astype(np.float64) - (0 if dtype == "float32" else ZERO_POINT)


def check(run_c_kernel, kernel, workload, weight, x, expected):
    configs = ({},)
    words = kernel.layout(weight.tile, workload, configs)
    made = np.full(expected.shape, 99, "float32" if workload.dtype == "float32" else "int32")
    run_c_kernel(kernel.prim_func(workload, configs), x, words, made)
    if workload.dtype == "int8":
        np.testing.assert_array_equal(made, expected)
    else:
        np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-4)


def draw_dense(data, name, dtype):
    m, n = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 150))
    many = name == "sign_dense" and data.draw(st.booleans())
    p = data.draw(st.sampled_from(_divisors(m * n)))
    weight, rng = draw_weight(data, (m, n), p)
    count = weight.geometry.p if many else 1
    product = Product(weight.geometry, count)
    batch = data.draw(st.sampled_from([1, 1, 3]))
    workload = Workload(DENSE, product, batch, dtype, zero_point=ZERO_POINT)
    return workload, weight, draw_activations(rng, dtype, (batch, n))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["lookup_dense", "sign_dense"])
@SETTINGS
@given(data=st.data())
def test_dense_products_equal_the_definition(run_c_kernel, name, dtype, data):
    workload, weight, x = draw_dense(data, name, dtype)
    (rows,) = segment_rows(weight, workload.product)
    expected = np.einsum("bn,rsn->brs", centred(x, dtype), rows)
    check(run_c_kernel, KERNELS[name], workload, weight, x, expected)


def draw_conv(data, name, dtype):
    rank = data.draw(st.sampled_from([1, 2, 2]))
    groups = data.draw(st.sampled_from([1, 1, 2, 3]))
    kernel = tuple(data.draw(st.integers(1, 3 if rank == 2 else 20)) for _ in range(rank))
    channels = data.draw(st.sampled_from([*range(1, 10), 37, 65]))
    shape = (groups * data.draw(st.integers(1, 6)), channels, *kernel)
    direct = name == "direct_conv"
    p = data.draw(
        st.sampled_from(_divisors(int(np.prod(shape))) if direct else _divisors(shape[0]))
    )
    weight, rng = draw_weight(data, shape, p)
    dilation = tuple(data.draw(st.integers(1, 2)) for _ in range(rank))
    reach = [(size - 1) * space + 1 for size, space in zip(kernel, dilation, strict=True)]
    strides = tuple(data.draw(st.integers(1, 3)) for _ in range(rank))
    padding = tuple(data.draw(st.integers(0, min(2, r - 1))) for r in [*reach, *reach])
    window = Window(kernel, strides, padding, dilation)
    extents = tuple(r + data.draw(st.integers(0, 5)) for r in reach)
    count = weight.geometry.p if direct and data.draw(st.booleans()) else 1
    workload = Workload(
        f"relax.tbn.tiled_conv{rank}d",
        Product(weight.geometry, count, groups),
        1,
        dtype,
        window=window,
        extents=extents,
        features=frozenset(data.draw(st.sampled_from([(), ("dsp",)]))),
        zero_point=ZERO_POINT,
    )
    return workload, weight, draw_activations(rng, dtype, (1, groups * channels, *extents))


def convolved(x, rows, workload):
    """Dot products in float64: (1, groups, rows, segments, *outputs)."""
    window, rank = workload.window, len(workload.window.kernel)
    pads = [p for a in reversed(range(rank)) for p in window.padding[a::rank]]
    convolve = torch.nn.functional.conv1d if rank == 1 else torch.nn.functional.conv2d
    groups, count, segments, _ = rows.shape
    y = convolve(
        torch.nn.functional.pad(torch.from_numpy(x), pads),
        torch.from_numpy(rows.reshape(-1, workload.channels, *window.kernel).astype(np.float64)),
        None,
        window.strides,
        0,
        window.dilation,
        groups,
    )
    return y.numpy().reshape(1, groups, count, segments, *workload.out_extents)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["lookup_conv", "direct_conv"])
@SETTINGS
@given(data=st.data())
def test_convolutions_equal_the_definition(run_c_kernel, name, dtype, data):
    workload, weight, x = draw_conv(data, name, dtype)
    expected = convolved(centred(x, dtype), segment_rows(weight, workload.product), workload)
    check(run_c_kernel, KERNELS[name], workload, weight, x, expected)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_product_of_known_extents_has_a_kernel(data):
    dtype = data.draw(st.sampled_from(DTYPES))
    draw = data.draw(st.sampled_from([draw_dense, draw_conv]))
    name = {draw_dense: "sign_dense", draw_conv: "direct_conv"}[draw]
    workload, _, _ = draw(data, name, dtype)
    assert choose(RULES, workload) in KERNELS


@pytest.mark.parametrize("size", [1, 31, 32, 33, 64, 100])
def test_tile_words_keep_the_order_of_bits_and_end_with_one_more(size):
    signs = np.random.default_rng(size).choice([-1, 1], size)
    words = tile_words(TiledTensor.from_signs(signs, [1.0], (1, size)).tile)
    assert words.dtype == np.uint32
    assert len(words) == -(-size // 32) + 1
    for k, sign in enumerate(signs):
        assert (words[k // 32] >> (k % 32) & 1) == (sign > 0)
    assert words[-1] == 0
