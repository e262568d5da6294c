"""The bare-metal lookup convolution against float64 of the dense expansion."""

import numpy as np
import torch
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st

from tbn_tvm.schedules.cortex_m.lookup_conv import LookupConv, Plan, filter_words
from tbn_tvm.schedules.reference import Product, Window
from tbn_tvm.schedules.rules import Workload
from tbn_tvm.tiling import TiledTensor


def draw_workload(data):
    """A convolution with one segment a filter, and its weight."""
    rank = data.draw(st.sampled_from([1, 2, 2]))
    groups, p = data.draw(st.sampled_from([1, 1, 2, 3])), data.draw(st.sampled_from([1, 2, 4]))
    kernel = tuple(data.draw(st.integers(1, 3)) for _ in range(rank))
    channels = data.draw(st.integers(1, 19))
    shape = (groups * p * data.draw(st.integers(1, 3)), channels, *kernel)
    window = Window(
        kernel,
        tuple(data.draw(st.integers(1, 3)) for _ in range(rank)),
        tuple(data.draw(st.integers(0, 2)) for _ in range(2 * rank)),
        tuple(data.draw(st.integers(1, 2)) for _ in range(rank)),
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    signs = rng.choice([-1, 1], int(np.prod(shape)) // p)
    weight = TiledTensor.from_signs(signs, [1.0], shape)
    return (
        Workload(
            f"relax.tbn.tiled_conv{rank}d",
            Product(weight.geometry, 1, groups),
            1,
            "float32",
            window=window,
            extents=tuple(data.draw(st.integers(5, 9)) for _ in range(rank)),
        ),
        weight,
        rng,
    )


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_window_group_and_stride_equals_the_expansion(data):
    workload, weight, rng = draw_workload(data)
    product, window = workload.product, workload.window
    kernel = LookupConv()
    function = kernel.prim_func(workload, ({},)).with_attr("global_symbol", "main")
    words = kernel.layout(weight.tile, workload, ({},))
    x = rng.normal(size=(1, workload.channels * product.groups, *workload.extents))
    x = x.astype("float32")
    dots = np.full((1, product.groups, product.unique_rows, 1, *workload.out_extents), np.nan)
    dots = tvm.runtime.tensor(dots.astype("float32"))
    built = tvm.compile(tvm.IRModule({"main": function}), target="llvm")
    built["main"](tvm.runtime.tensor(x), tvm.runtime.tensor(words), dots)
    rank = len(window.kernel)
    pads = [
        pad
        for axis in reversed(range(rank))
        for pad in (window.padding[axis], window.padding[rank + axis])
    ]
    convolve = torch.nn.functional.conv1d if rank == 1 else torch.nn.functional.conv2d
    expected = convolve(
        torch.nn.functional.pad(torch.from_numpy(x).double(), pads),
        torch.from_numpy(weight.expand(np.float64)),
        None,
        window.strides,
        0,
        window.dilation,
        product.groups,
    ).numpy()
    expected = expected.reshape(1, product.groups, product.group_rows, *workload.out_extents)
    for row in range(product.group_rows):
        y = dots.numpy()[:, :, row % product.unique_rows, 0]
        assert np.abs(y - expected[:, :, row]).max() < 1e-4


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_filter_words_hold_every_sign_in_its_place(data):
    workload, weight, _ = draw_workload(data)
    product, plan = workload.product, Plan(workload)
    dense = weight.expand().reshape(product.groups, product.group_rows, -1) > 0
    signs = dense[:, : product.unique_rows]
    words = filter_words(signs, plan)
    (height, width), channels = plan.kernel, workload.channels
    for group, filter_, row, column, channel in np.ndindex(
        product.groups, product.unique_rows, height, width, channels
    ):
        pixel = column if plan.runs == 1 else 0
        run = 0 if plan.runs == 1 else column
        table = pixel * plan.tables + channel // 4
        word = words[group, filter_, row, run, table // 8]
        bit = word >> (4 * (table % 8) + channel % 4) & 1
        assert bit == signs[group, filter_, channel * height * width + row * width + column]
