"""The weight layout of the bare-metal lookup convolution, and its scratch."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tbn_tvm.micro.kernels import STACK_ARRAY_BYTES, lower_kernel
from tbn_tvm.schedules.cortex_m import RULES
from tbn_tvm.schedules.cortex_m.lookup_conv import LookupConv, Plan, Units, filter_words
from tbn_tvm.schedules.families import bare_metal, family_of
from tbn_tvm.schedules.reference import Product, Window
from tbn_tvm.schedules.rules import Workload, choose
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
def test_filter_words_hold_every_sign_in_its_place(data):
    workload, weight, _ = draw_workload(data)
    product, plan = workload.product, Plan(workload)
    dense = weight.expand().reshape(product.groups, product.group_rows, -1) > 0
    signs = dense[:, : product.unique_rows]
    words = filter_words(signs, plan)
    (height, width), channels = plan.kernel, workload.channels
    units = Units(plan)
    for group, filter_, row, column, channel in np.ndindex(
        product.groups, product.unique_rows, height, width, channels
    ):
        stretch, table = divmod(channel // 4, units.tables)
        tables = min(units.tables, plan.tables - stretch * units.tables)
        step, tap = divmod(column, units.taps)
        nibble = tap * tables + table
        at = (stretch * units.words(units.tables)) * units.steps + step * units.words(tables)
        word = words[group, filter_, row, at + nibble // 8]
        bit = word >> (4 * (nibble % 8) + channel % 4) & 1
        assert bit == signs[group, filter_, channel * height * width + row * width + column]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_ring_keeps_its_size_through_lowering(data):
    workload, _, _ = draw_workload(data)
    workload = replace(workload, dtype=data.draw(st.sampled_from(["float32", "int8"])))
    kernel = lower_kernel(LookupConv().prim_func(workload, ({},)), "kernel")
    size = Plan(workload).ring_bytes
    assert [nbytes for nbytes, _ in kernel.scratch] == ([size] if size > STACK_ARRAY_BYTES else [])


def test_a_ring_takes_half_of_a_boards_ram_at_most():
    weight = TiledTensor.from_signs(np.ones(4 * 16 * 9, int), [1.0], (4, 16, 3, 3))
    window = Window((3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    workload = Workload(
        "relax.tbn.tiled_conv2d",
        Product(weight.geometry, 1),
        1,
        "float32",
        window=window,
        extents=(16, 16),
    )
    size = Plan(workload).ring_bytes
    for ram, kernel in ((2 * size, "lookup_conv"), (2 * size - 1, "direct_conv")):
        features = family_of(bare_metal(ram_bytes=ram)).features
        assert choose(RULES, replace(workload, features=features)) == kernel
    assert choose(RULES, workload) == "lookup_conv"
