"""The SIMD lookup kernels of the CPU family against float64 of the dense expansion."""

import functools

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm import tirx as tir
from tvm.target import codegen

from tbn_tvm import op, pipeline
from tbn_tvm.schedules import cpu
from tbn_tvm.schedules.cpu import dense, lookup
from tbn_tvm.schedules.layouts import sign_rows
from tbn_tvm.schedules.reference import Product
from tbn_tvm.tiling import TiledTensor

ISAS = [lookup.AVX512, lookup.AVX2]


def target_with(feature):
    """A target of this machine's architecture with one feature."""
    cpu = {"avx512f": "skylake-avx512", "avx2": "haswell"}[feature]
    return tvm.target.Target(
        {"kind": "llvm", "mtriple": codegen.llvm_get_system_triple(), "mcpu": cpu}
    )


@functools.cache
def runs_here(feature):
    """Whether this machine executes the feature."""
    triple = codegen.llvm_get_system_triple()
    if not triple.startswith("x86_64"):
        return False
    here = tvm.target.Target(
        {"kind": "llvm", "mtriple": triple, "mcpu": codegen.llvm_get_system_cpu()}
    )
    return bool(codegen.llvm_cpu_has_features(feature, here))


def needs(feature):
    """Skip what this machine cannot execute."""
    if not runs_here(feature):
        pytest.skip(f"this CPU has no {feature}")


def tiled(m, n, p, seed):
    """A random weight whose tile is whole rows."""
    rng = np.random.default_rng(seed)
    return TiledTensor.from_signs(
        rng.choice([-1, 1], m * n // p), rng.uniform(0.1, 2, p).astype("float32"), (m, n)
    )


def layer(weight, x_shape):
    """A module of one dense layer with bias and ReLU."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(x_shape, "float32"))
    bias = np.linspace(-1, 1, weight.m).astype("float32")
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit(
                op.tiled_dense(
                    x,
                    relax.const(weight.tile),
                    relax.const(weight.alphas),
                    relax.const(bias),
                    out_features=weight.m,
                    p=weight.p,
                )
            )
            result = builder.emit_output(builder.emit(relax.op.nn.relu(y)))
        builder.emit_func_output(result)
    return builder.get(), bias


def compiled(mod, feature):
    """The module through our pipeline, checked to use the kernel of a feature."""
    target = target_with(feature)
    lowered = pipeline.run(mod, pipeline.host_phases(target), target)
    assert any(name.name_hint in cpu.KERNELS for name in lowered.get_global_vars())
    return relax.VirtualMachine(tvm.compile(lowered, target), tvm.cpu())


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.feature)
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_any_shape_and_batch_equals_the_expansion(isa, data):
    needs(isa.feature)
    p = data.draw(st.sampled_from([1, 2, 4]))
    m, n = p * data.draw(st.integers(1, 70)), data.draw(st.integers(8, 140))
    weight = tiled(m, n, p, data.draw(st.integers(0, 2**31)))
    symbolic = data.draw(st.booleans())
    batch = data.draw(st.integers(1, 9))
    mod, bias = layer(weight, (tir.Var("batch", "int64") if symbolic else batch, n))
    x = np.random.default_rng(0).normal(size=(batch, n)).astype("float32")
    y = compiled(mod, isa.feature)["main"](tvm.runtime.tensor(x)).numpy()
    dense = weight.expand(np.float64)
    expected = np.maximum(x.astype("float64") @ dense.T + bias, 0)
    magnitude = np.abs(x).astype("float64") @ np.abs(dense).T + 1
    assert (np.abs(y - expected) / magnitude).max() < 2e-6


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_large_layers_share_work_between_threads_and_stay_right(batch):
    needs("avx2")
    weight = tiled(2048, 2048, 2, 0)
    assert weight.geometry.unique_rows() * weight.n >= dense.SERIAL_WORK // 2
    mod, bias = layer(weight, (tir.Var("batch", "int64"), 2048))
    x = np.random.default_rng(0).normal(size=(batch, 2048)).astype("float32")
    y = compiled(mod, "avx2")["main"](tvm.runtime.tensor(x)).numpy()
    expected = np.maximum(x.astype("float64") @ weight.expand(np.float64).T + bias, 0)
    assert np.abs(y - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_leading_axes_come_back(lead):
    needs("avx2")
    weight = tiled(24, 40, 2, 0)
    mod, bias = layer(weight, (*lead, 40))
    x = np.random.default_rng(0).normal(size=(*lead, 40)).astype("float32")
    y = compiled(mod, "avx2")["main"](tvm.runtime.tensor(x)).numpy()
    expected = np.maximum(x.astype("float64") @ weight.expand(np.float64).T + bias, 0)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.feature)
@pytest.mark.parametrize(("rows", "columns"), [(1, 8), (16, 32), (17, 31), (70, 100)])
def test_row_words_hold_every_sign_in_its_place(isa, rows, columns):
    weight = tiled(rows, columns, 1, 0)
    (signs,) = sign_rows(weight.tile, Product(weight.geometry, 1))
    words = lookup.row_words(signs, isa)
    assert words.shape == (-(-rows // isa.lanes), -(-columns // isa.word_columns), isa.lanes)
    signs = weight.signs().reshape(rows, columns)
    for row in range(rows):
        for column in range(columns):
            word, bit = divmod(column, isa.word_columns)
            value = words[row // isa.lanes, word, row % isa.lanes]
            assert (value >> bit & 1) == (signs[row, column] > 0)
