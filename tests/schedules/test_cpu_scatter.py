"""The stage that writes a product's outputs: repeated rows are read in order."""

import numpy as np
import pytest
import tvm
from tvm import te
from tvm import tirx as tir

from tbn_tvm import relay_passes
from tbn_tvm.schedules import reference
from tbn_tvm.tiling import Geometry


def scheduled(m, n, p, batch, threads=True):
    """The scatter stage of a dense layer with a ReLU fused, and its product."""
    product = reference.Product(Geometry(m, n, m * n // p), p)
    dots = te.placeholder((batch, product.unique_rows, product.segments), "float32", "dots")
    alpha = te.placeholder((p,), "float32", "alpha")
    y = reference.dense_scatter(dots, alpha, None, product, "float32")
    relu = te.compute(y.shape, lambda *i: te.max(y(*i), tir.const(0.0, "float32")))
    func = te.create_prim_func([dots, alpha, relu]).with_attr("global_symbol", "main")
    mod = tvm.IRModule({"main": func})
    return relay_passes.ScheduleDefaults(threads=threads)(mod), product


@pytest.mark.parametrize(("m", "n", "p", "batch"), [(100, 8, 4, 3), (60, 9, 8, 5), (7, 4, 7, 600)])
def test_outputs_are_the_mix_whatever_the_loops(m, n, p, batch):
    mod, product = scheduled(m, n, p, batch)
    rng = np.random.default_rng(0)
    dots = rng.normal(size=(batch, product.unique_rows, product.segments)).astype("float32")
    if product.segments > 1:  # as kernels leave what a row does not have
        phase = np.arange(product.unique_rows) * n % product.geometry.q
        dots[:, phase + n <= product.geometry.q, 1:] = 0
    alpha = rng.normal(size=p).astype("float32")
    y = tvm.runtime.tensor(np.empty((batch, m), "float32"))
    main = tvm.compile(mod, "llvm")["main"]
    main(tvm.runtime.tensor(dots), tvm.runtime.tensor(alpha), y)
    expected = np.zeros((batch, m))
    for row in range(m):
        for segment in range(product.segments):
            index = min(int(product.alpha_index(row, segment)), p - 1)
            expected[:, row] += alpha[index] * dots[:, row % product.unique_rows, segment]
    np.testing.assert_allclose(y.numpy(), np.maximum(expected, 0), rtol=1e-5, atol=1e-6)


def test_the_innermost_loop_is_one_period_of_the_unique_rows():
    mod, product = scheduled(100, 8, 4, tir.Var("batch", "int64"))
    assert f"T.grid(batch, {100 // product.unique_rows}, {product.unique_rows})" in mod.script()


def test_bare_metal_has_no_divisions_by_the_period_and_no_threads():
    mod, product = scheduled(100, 8, 4, 1, threads=False)
    assert f"T.grid(1, {100 // product.unique_rows}, {product.unique_rows})" in mod.script()
    large, _ = scheduled(1 << 16, 8, 4, 1, threads=False)
    assert "T.parallel" not in large.script()


def test_an_images_axes_become_one_loop_unless_something_else_is_read():
    x = te.placeholder((tir.Var("batch", "int64"), 3, 5, 7), "float32", "x")
    same = te.compute(x.shape, lambda b, c, i, j: x[b, 2 - c, i, j] + 1.0)
    turned = te.compute(x.shape, lambda b, c, i, j: x[b, c, 4 - i, j])
    texts = []
    for y in (same, turned):
        func = te.create_prim_func([x, y]).with_attr("global_symbol", "main")
        mod = relay_passes.ScheduleDefaults(threads=True)(tvm.IRModule({"main": func}))
        texts.append(mod.script())
    assert "T.grid(batch, 3, 35)" in texts[0]
    assert "T.grid(batch, 3, 5, 7)" in texts[1]
