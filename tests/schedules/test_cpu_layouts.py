"""Layouts of CPU kernels, bit by bit, and the rules that choose kernels."""

import numpy as np
import pytest

from tbn_tvm.schedules.cpu import KERNELS, RULES, direct_conv, masks, panel_dense
from tbn_tvm.schedules.reference import Product, Window
from tbn_tvm.schedules.rules import DENSE, Workload, choose
from tbn_tvm.tiling import Geometry, TiledTensor


def random_weight(shape, p, seed=0):
    rng = np.random.default_rng(seed)
    return TiledTensor.from_signs(rng.choice([-1, 1], int(np.prod(shape)) // p), np.ones(p), shape)


@pytest.mark.parametrize(("rows", "columns", "lanes"), [(1, 5, 8), (19, 32, 8), (30, 71, 4)])
def test_panel_words_are_set_where_the_sign_is_negative(rows, columns, lanes):
    signs = np.random.default_rng(0).random((rows, columns)) < 0.5
    words = panel_dense.row_words(signs, lanes)
    assert words.shape == (-(-rows // lanes), -(-columns // 32), lanes)
    for row in range(rows):
        for column in range(columns):
            word = words[row // lanes, column // 32, row % lanes]
            assert (word >> column % 32 & 1) == (not signs[row, column])


@pytest.mark.parametrize(
    ("m", "n", "p"),
    [(10, 84, 4), (3, 1100, 11), (4, 1200, 16), (12, 30, 4), (6, 1200, 9), (1, 7, 7)],
)
def test_items_cover_each_unique_row_once_and_hold_its_bits(m, n, p):
    weight = random_weight((m, n), p)
    product = Product(weight.geometry, p)
    items = masks.all_items(product)
    words = masks.item_words(weight.tile, product, items)
    assert words.size == masks.item_words_size(product, items)
    signs = weight.signs()
    covered = np.zeros((product.unique_rows, n), dtype=int)
    for number, item in enumerate(items):
        head = words[number * masks.FIELDS :][: masks.FIELDS]
        assert list(head[:4]) == [item.row, item.segment, item.start, item.length]
        covered[item.row, item.start : item.start + item.length] += 1
        bits = words[head[4] :]
        for element in range(item.length):
            chunk, rest = divmod(element, masks.CHUNK)
            plane, lane = divmod(rest, masks.LANES)
            flag = bits[chunk * masks.LANES + lane] >> plane & 1
            flat = item.row * n + item.start + element
            assert flag == (signs[flat % weight.q] < 0)
            # A piece has one alpha: it stays in one use of the tile.
            assert flat // weight.q == (item.row * n) // weight.q + item.segment
    assert (covered == 1).all()


def test_only_rows_of_several_pieces_are_split():
    product = Product(random_weight((10, 84), 4).geometry, 4)  # a tile is two and a half rows
    assert {item.row for item in masks.split_items(product)} == {2}
    assert masks.split_items(Product(product.geometry, 1)) == []


def test_packed_bits_are_planes_of_lanes():
    bits = np.random.default_rng(0).random(1300) < 0.5
    words = direct_conv.pack(bits)
    for index in range(bits.size):
        chunk, rest = divmod(index, direct_conv.CHUNK)
        plane, lane = divmod(rest, direct_conv.LANES)
        assert (words[chunk * direct_conv.LANES + lane] >> plane & 1) == bits[index]


@pytest.mark.parametrize(("m", "groups", "p"), [(10, 1, 4), (12, 3, 9), (2, 1, 12)])
def test_pieces_of_filters_follow_the_tile(m, groups, p):
    weight = random_weight((m, 6, 3, 3), p)
    product = Product(weight.geometry, p, groups)
    window = Window((3, 3), (1, 1), (0,) * 4, (1, 1))
    workload = Workload("relax.tbn.tiled_conv2d", product, 1, "float32", window=window)
    found = direct_conv.pieces(workload)
    assert (found.sum(axis=2) == 1).all()
    for group in range(groups):
        for row in range(product.unique_rows):
            first = (group * product.group_rows + row) * weight.n
            for element in range(weight.n):
                segment = (first + element) // weight.q - first // weight.q
                assert found[group, row, segment, element]


def dense(m, n, p, alphas=None, dtype="float32", features=()):
    geometry = Geometry(m, n, m * n // p)
    return Workload(DENSE, Product(geometry, alphas or p), 1, dtype, frozenset(features))


@pytest.mark.parametrize(
    ("workload", "kernel"),
    [
        (dense(128, 784, 4, features=["avx2", "avx512f"]), "lookup_avx512f"),
        (dense(128, 784, 4, features=["avx2"]), "lookup_avx2"),
        (dense(128, 784, 4), "panel"),
        (dense(100, 784, 16, features=["avx2"]), "lookup_avx2"),  # ragged, mostly whole rows
        (dense(100, 784, 16, dtype="float16"), "panel"),
        (dense(16, 784, 4, features=["avx2"]), "masks"),  # four unique rows
        (dense(8, 784, 64), "masks"),  # several tiles a row
        (dense(128, 784, 4, dtype="float64"), None),
    ],
)
def test_rules(workload, kernel):
    assert choose(RULES, workload) == kernel


def test_every_rule_names_a_kernel():
    assert {rule.kernel for rule in RULES} <= set(KERNELS)


@pytest.mark.parametrize("name", KERNELS)
def test_search_spaces_hold_the_default_and_stay_small(name):
    kernel = KERNELS[name]
    if "conv" in name:
        window = Window((3, 3), (1, 1), (1,) * 4, (1, 1))
        product = Product(Geometry(64, 576, 64 * 144), 4)
        workload = Workload(
            "relax.tbn.tiled_conv2d", product, 1, "float32", window=window, extents=(56, 56)
        )
    else:
        workload = dense(1024, 1024, 4).at_batch(64)
    configs = list(kernel.configs(workload))
    assert 1 <= len(configs) <= 300
    assert kernel.default(workload) in configs
