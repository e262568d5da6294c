"""Weight layouts of the GPU kernels, bit by bit.

What a lane of a tensor-core product holds is written down here once more, element by element as
the PTX ISA has it ("Matrix fragments for mma.m16n8k16"), and the layouts are compared with that.
"""

import numpy as np
import pytest
import tvm
from tvm import te

from tbn_tvm.schedules.cuda.conv_mma import patch_columns
from tbn_tvm.schedules.cuda.dense_segments import tile_words
from tbn_tvm.schedules.cuda.dense_simt import row_words
from tbn_tvm.schedules.cuda.fragments import NATURAL, NEIGHBOURS, fragment_words
from tbn_tvm.schedules.cuda.intrinsics import decoded
from tbn_tvm.testing.products import convolution, numpy_dtype
from tbn_tvm.tiling import pack_bits


def operand_a(lane, element):
    """Row and column of the 16 x 16 operand that element ``a<element>`` of a lane is."""
    group, thread = lane >> 2, lane % 4
    lower = element in (2, 3, 6, 7)
    right = element >= 4
    return group + 8 * lower, thread * 2 + (element & 1) + 8 * right


def natural(product, column):
    """The tile's column that a product's column is: in order."""
    return 16 * product + column


def neighbours(product, column):
    """The tile's column such that a lane's four columns of four products are 16 neighbours."""
    thread = column % 8 // 2
    return 16 * thread + 4 * product + 2 * (column // 8) + column % 2


def random_bits(*shape):
    return np.random.default_rng(0).integers(0, 2, shape).astype(bool)


@pytest.mark.parametrize(("order", "column_of"), [(NATURAL, natural), (NEIGHBOURS, neighbours)])
@pytest.mark.parametrize(("rows", "columns"), [(16, 64), (32, 192), (53, 101), (1, 1)])
def test_a_fragment_word_is_the_lanes_operand_of_four_products(rows, columns, order, column_of):
    signs = random_bits(rows, columns)
    words = fragment_words(signs, order)
    padded = np.pad(signs, [(0, -rows % 16), (0, -columns % 64)])
    assert words.shape == (len(padded) // 16, padded.shape[1] // 64, 32)
    for lane in range(32):
        for product in range(4):
            for element in range(8):
                row, column = operand_a(lane, element)
                register, value = divmod(element, 2)
                bit = 4 * product + register + 16 * value
                held = words[..., lane] >> bit & 1
                expected = padded[row::16, column_of(product, column) :: 64]
                np.testing.assert_array_equal(held, expected)


@pytest.mark.parametrize("column_of", [natural, neighbours])
def test_the_orders_of_columns_are_permutations(column_of):
    columns = {column_of(product, column) for product in range(4) for column in range(16)}
    assert columns == set(range(64))


def test_a_lane_needs_sixteen_neighbouring_activations():
    for thread in range(4):
        rows_of_b = [thread * 2, thread * 2 + 1, thread * 2 + 8, thread * 2 + 9]
        needed = [neighbours(product, row) for product in range(4) for row in rows_of_b]
        assert needed == list(range(16 * thread, 16 * thread + 16))


def test_leading_axes_are_matrices_of_their_own():
    signs = random_bits(3, 20, 70)
    words = fragment_words(signs)
    for group in range(3):
        np.testing.assert_array_equal(words[group], fragment_words(signs[group]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_decoded_bits_are_the_signs_of_packed_ones(dtype):
    given = np.array([0, 0xFFFFFFFF, 0x12345678, 0x9ABCDEF0, 0x80018001], "uint32")
    words = te.placeholder(given.shape, "uint32")

    def of_pair(pair):
        return te.compute(given.shape, lambda i: decoded(words[i], pair, dtype))

    every_pair = [of_pair(pair) for pair in range(16)]
    run = tvm.compile(te.create_prim_func([words, *every_pair]), "llvm")
    made = [tvm.runtime.tensor(np.zeros_like(given)) for _ in every_pair]
    run(tvm.runtime.tensor(given), *made)
    for pair, result in enumerate(made):
        values = result.numpy().astype("<u4").view(numpy_dtype(dtype)).astype("float32")
        bits = given[:, None] >> np.array([pair, pair + 16], "uint32") & 1
        np.testing.assert_array_equal(values.reshape(-1, 2), 2.0 * bits - 1)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 32), (7, 33), (64, 101)])
def test_row_words_have_neighbouring_rows_side_by_side(rows, columns):
    signs = random_bits(rows, columns)
    words = row_words(signs)
    assert (words.shape, words.dtype) == ((-(-columns // 32), rows), np.uint32)
    for column in range(columns):
        np.testing.assert_array_equal(words[column // 32] >> column % 32 & 1, signs[:, column])
    assert not (words[-1].astype("uint64") >> ((columns - 1) % 32 + 1)).any()


@pytest.mark.parametrize("length", [1, 8, 31, 32, 33, 101])
def test_tile_words_are_the_tile(length):
    signs = random_bits(length)
    words = tile_words(pack_bits(signs))
    assert (words.shape, words.dtype) == ((-(-length // 32),), np.uint32)
    bits = words[:, None] >> np.arange(32, dtype="uint32") & 1
    np.testing.assert_array_equal(bits.reshape(-1)[:length], signs)
    assert not bits.reshape(-1)[length:].any()


@pytest.mark.parametrize("held", [16, 32, 64])
@pytest.mark.parametrize(
    ("channels", "kernel", "groups"), [(16, (3, 3), 1), (40, (5,), 1), (72, (1, 1), 2)]
)
def test_patch_columns_meet_every_channel_of_every_tap(channels, kernel, groups, held):
    extents = tuple(size + 3 for size in kernel)
    workload = convolution(12, channels, kernel, extents, 2, 1, groups=groups).workload
    taps, per_group = int(np.prod(kernel)), channels // groups
    signs = random_bits(groups, 6, per_group * taps)
    made = patch_columns(signs, workload, held)
    parts = -(-per_group // held)
    assert made.shape[-1] % (64 * parts) == 0
    by_part = made.reshape(groups, 6, parts, -1)
    used = np.zeros(by_part.shape, bool)
    for channel in range(per_group):
        for tap in range(taps):
            part, local = divmod(channel, held)
            column = (slice(None), slice(None), part, tap * held + local)
            np.testing.assert_array_equal(by_part[column], signs[..., channel * taps + tap])
            used[column] = True
    assert not by_part[~used].any()
