"""Every CPU kernel alone against float64 of the dense expansion, and its code for other CPUs."""

import functools
import math
import re

import numpy as np
import pytest
import torch
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm.target import codegen

from tbn_tvm.schedules.cpu import KERNELS, dense
from tbn_tvm.schedules.reference import Product, Window
from tbn_tvm.schedules.rules import DENSE, Workload
from tbn_tvm.tiling import TiledTensor

DENSE_KERNELS = ["lookup_avx512f", "lookup_avx2", "panel", "masks"]
CONV_KERNELS = ["lookup_conv_avx512f", "lookup_conv_avx2", "direct_conv"]
PORTABLE = ["panel", "masks", "direct_conv"]
NEON = tvm.target.Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+neon"]})


@functools.cache
def target_of(kernel):
    """A target that has what a kernel needs; skips where this machine has not."""
    feature = kernel.rpartition("_")[2]
    triple = codegen.llvm_get_system_triple()
    cpu = {"avx512f": "skylake-avx512", "avx2": "haswell"}.get(feature)
    if cpu is None:
        return tvm.target.Target("llvm")
    here = {"kind": "llvm", "mtriple": triple, "mcpu": codegen.llvm_get_system_cpu()}
    if not triple.startswith("x86_64") or not codegen.llvm_cpu_has_features(
        feature, tvm.target.Target(here)
    ):
        pytest.skip(f"this CPU has no {feature}")
    return tvm.target.Target({**here, "mcpu": cpu})


def random_weight(data, shape, p):
    """A weight with alphas a tile or one a layer."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31), label="seed"))
    count = p if data.draw(st.booleans(), label="alpha a tile") else 1
    signs = rng.choice([-1, 1], math.prod(shape) // p)
    return TiledTensor.from_signs(signs, rng.uniform(0.1, 2, count), shape), rng


def built(kernel, workload, configs, weight):
    """A function from an input and the shape of dots to dots, whose buffer begins as NaN."""
    func = kernel.prim_func(workload, configs).with_attr("global_symbol", "main")
    main = tvm.compile(tvm.IRModule({"main": func}), target_of(kernel.name))["main"]
    words = tvm.runtime.tensor(kernel.layout(weight.tile, workload, configs))

    def call(x, shape):
        dots = tvm.runtime.tensor(np.full(shape, np.nan, "float32"))
        main(tvm.runtime.tensor(x), words, dots)
        return dots.numpy().astype(np.float64)

    return call


def mixed(dots, weight, product):
    """Outputs ``(batch, m, ...)`` of dots ``(batch, groups, rows, segments, ...)``."""
    outputs = []
    for row in range(weight.m):
        group, local = divmod(row, product.group_rows)
        total = 0.0
        for segment in range(product.segments):
            index = min(int(product.alpha_index(row, segment)), product.alpha_count - 1)
            dot = dots[:, group, local % product.unique_rows, segment]
            total = total + float(weight.alphas[index]) * dot
        outputs.append(total)
    return np.stack(outputs, axis=1)


def drawn_configs(data, kernel, workload):
    """Defaults, or for each regime one of the valid configurations."""
    configs = []
    for regime in kernel.regimes(workload):
        default = kernel.default(regime)
        if kernel.space(regime):
            assert kernel.valid(regime, default)
        configs.append(default)
    if not data.draw(st.booleans(), label="tuned"):
        return tuple(configs)
    candidates = [list(kernel.configs(regime)) for regime in kernel.regimes(workload)]
    return tuple(data.draw(st.sampled_from(c), label="config") for c in candidates)


@pytest.mark.parametrize("name", DENSE_KERNELS)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(data=st.data())
def test_dense_products(name, data):
    target_of(name)
    kernel = KERNELS[name]
    p = data.draw(st.sampled_from([1, 2, 3, 4, 7, 16]), label="p")
    m = data.draw(st.integers(1, 70), label="m")
    n = data.draw(st.integers(1, 90), label="n") * data.draw(st.sampled_from([1, 1, 7]))
    n *= p // math.gcd(m * n, p)
    weight, rng = random_weight(data, (m, n), p)
    product = Product(weight.geometry, weight.alphas.size)
    batch = data.draw(st.sampled_from([1, 2, 3, 8, 13]), label="batch")
    known = data.draw(st.booleans(), label="known batch")
    dtype = data.draw(st.sampled_from(["float32", "float16"]), label="dtype")
    workload = Workload(DENSE, product, batch if known else None, dtype)
    configs = drawn_configs(data, kernel, workload)
    x = rng.normal(size=(batch, n)).astype(dtype)
    rows = kernel.rows(workload, configs)
    dots = built(kernel, workload, configs, weight)(x, (batch, rows, product.segments))
    expanded, x = weight.expand(np.float64), x.astype(np.float64)
    magnitude = np.abs(x) @ np.abs(expanded).T + 1e-30
    error = np.abs(mixed(dots[:, None], weight, product) - x @ expanded.T)
    assert (error / magnitude).max() < 2e-6


@pytest.mark.parametrize("name", DENSE_KERNELS)
def test_threads_share_large_dense_products(name):
    target_of(name)
    kernel, rng = KERNELS[name], np.random.default_rng(0)
    shape = (4404, 2048)  # ragged: rows of two segments among whole ones
    weight = TiledTensor.from_signs(
        rng.choice([-1, 1], math.prod(shape) // 16), rng.uniform(0.1, 2, 16), shape
    )
    product = Product(weight.geometry, 16)
    assert product.macs > dense.SERIAL_WORK
    assert product.segments == 2
    workload = Workload(DENSE, product, None, "float32")
    configs = tuple(kernel.default(regime) for regime in kernel.regimes(workload))
    call, rows = built(kernel, workload, configs, weight), kernel.rows(workload, configs)
    for batch in (1, 9):  # threads share rows, then samples
        x = rng.normal(size=(batch, 2048)).astype("float32")
        dots = call(x, (batch, rows, product.segments))
        y, expected = mixed(dots[:, None], weight, product), x @ weight.expand(np.float64).T
        assert np.abs(y - expected).max() < 1e-5 * expected.max()


@pytest.mark.parametrize("name", CONV_KERNELS)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(data=st.data())
def test_convolutions(name, data):
    target_of(name)
    kernel = KERNELS[name]
    rank = data.draw(st.sampled_from([1, 2, 2]), label="rank")

    def axes(strategy, label):
        return tuple(data.draw(strategy, label=label) for _ in range(rank))

    taps = axes(st.sampled_from([1, 2, 3, 3, 5, 6]), "kernel")
    window = Window(
        taps,
        axes(st.integers(1, 3), "strides"),
        axes(st.integers(0, 2), "before") + axes(st.integers(0, 2), "after"),
        axes(st.integers(1, 2), "dilation"),
    )
    extents = tuple(2 * (k - 1) + 1 + data.draw(st.integers(0, 12)) for k in taps)
    groups = data.draw(st.sampled_from([1, 1, 2, 5]), label="groups")
    channels = data.draw(st.integers(1, 9), label="channels of a group")
    p = data.draw(st.sampled_from([1, 2, 3, 4]), label="p")
    m = groups * data.draw(st.integers(1, 20), label="rows of a group")
    if name != "direct_conv":  # the others are for rows of one segment
        m *= p
    channels *= p // math.gcd(m * channels * math.prod(taps), p)
    weight, rng = random_weight(data, (m, channels, *taps), p)
    product = Product(weight.geometry, weight.alphas.size, groups)
    if name != "direct_conv" and product.segments > 1:
        product = Product(weight.geometry, 1, groups)
        weight = TiledTensor(weight.tile, weight.alphas[:1], weight.shape, p)
    batch = data.draw(st.integers(1, 3), label="batch")
    dtype = data.draw(st.sampled_from(["float32", "float16"]), label="dtype")
    known = data.draw(st.booleans(), label="known batch")
    workload = Workload(
        f"relax.tbn.tiled_conv{rank}d",
        product,
        batch if known else None,
        dtype,
        window=window,
        extents=extents,
    )
    configs = drawn_configs(data, kernel, workload)
    x = rng.normal(size=(batch, channels * groups, *extents)).astype(dtype)
    rows = kernel.rows(workload, configs)
    shape = (batch, groups, rows, product.segments, *workload.out_extents)
    y = mixed(built(kernel, workload, configs, weight)(x, shape), weight, product)
    convolve = torch.nn.functional.conv1d if rank == 1 else torch.nn.functional.conv2d
    before, after = window.padding[:rank], window.padding[rank:]
    pads = [side for axis in reversed(range(rank)) for side in (before[axis], after[axis])]
    x = torch.nn.functional.pad(torch.from_numpy(x.astype(np.float64)), pads)
    filters = torch.from_numpy(weight.expand(np.float64))
    rest = window.strides, 0, window.dilation, groups
    expected = convolve(x, filters, None, *rest).numpy()
    magnitude = convolve(x.abs(), filters.abs(), None, *rest).numpy() + 1e-30
    assert (np.abs(y - expected) / magnitude).max() < 2e-6


def portable_workload(name, dtype, batch):
    """A small workload of a kernel's kind."""
    if name != "direct_conv":
        weight = TiledTensor.from_signs(np.ones(10 * 84 // 4), np.ones(4), (10, 84))
        return Workload(DENSE, Product(weight.geometry, 4), batch, dtype)
    weight = TiledTensor.from_signs(np.ones(16 * 72 // 4), np.ones(4), (16, 8, 3, 3))
    window = Window((3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    product = Product(weight.geometry, 4)
    return Workload(
        "relax.tbn.tiled_conv2d", product, batch, dtype, window=window, extents=(15, 15)
    )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", PORTABLE)
def test_portable_kernels_become_neon_vectors(name, dtype, tmp_path):
    kernel, workload = KERNELS[name], portable_workload(name, dtype, None)
    configs = tuple(kernel.default(regime) for regime in kernel.regimes(workload))
    func = kernel.prim_func(workload, configs).with_attr("global_symbol", "kernel")
    module = tvm.tirx.build(tvm.IRModule({"kernel": func}), target=NEON)
    module.write_to_file(str(tmp_path / "kernel.o"), "o")
    header = (tmp_path / "kernel.o").read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert int.from_bytes(header[18:20], "little") == 183  # AArch64
    assembly = module.inspect_source("asm")
    arithmetic = "fadd" if name == "masks" else "fmla"
    assert len(re.findall(rf"\b{arithmetic}\s+v\d+\.4s", assembly)) >= 32
    assert re.search(r"\b(eor|orr)\s+v\d+\.16b", assembly)  # signs are applied to vectors
    if dtype == "float16":
        assert re.search(r"\bfcvtl2?\s+v\d+\.4s", assembly)
