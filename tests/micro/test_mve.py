"""The Cortex-M55's vector kernels: right for every shape, and worth their name."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import tbn_tvm
from tbn_tvm.compiler import import_model
from tbn_tvm.micro import Session
from tbn_tvm.micro.quantization import Calibration
from tbn_tvm.nn import TiledConv1d, TiledConv2d, TiledLinear, freeze
from tbn_tvm.schedules.cortex_m.mve import Vectors

BOARD = "mps3-an547"
DTYPES = ("float32", "int8")


def autoencoder():
    """640-128x4-8-128x4-640, the shape of MLPerf Tiny's anomaly detection."""
    sizes = [640, *[128] * 4, 8, *[128] * 4, 640]
    layers = []
    for size, made in pairwise(sizes):
        layers += [TiledLinear(size, made, p=4), nn.ReLU()]
    return nn.Sequential(*layers[:-1]), (640,)


def odd_dense():
    """Rows that fill no vector, columns that fill no table, word or chunk."""
    sizes = [151, 22, 9, 67, 131, 5]
    layers = [TiledLinear(size, made, p=1) for size, made in pairwise(sizes)]
    return nn.Sequential(*layers), (151,)


def convolutions():
    """Groups, strides, dilation, padding; runs of one table and of more than one chunk."""
    return nn.Sequential(
        TiledConv2d(3, 22, 3, padding=1, p=2),
        nn.ReLU(),
        TiledConv2d(22, 6, (1, 3), stride=2, groups=2, p=1),
        TiledConv2d(6, 9, 2, dilation=2, padding=1, p=3),
        nn.MaxPool2d(2),
        nn.Flatten(),
        TiledLinear(36, 4, p=2),
    ), (3, 9, 11)


def wide_convolution():
    """One axis, and so many channels that a run takes several chunks."""
    return nn.Sequential(TiledConv1d(50, 10, 3, padding=1, p=2)), (50, 5)


MODELS = (autoencoder, odd_dense, convolutions, wide_convolution)


def compiled(make, dtype, board=BOARD):
    """A project, an input and the output to expect."""
    torch.manual_seed(0)
    model, shape = make()
    x = torch.randn(4, *shape)
    net = import_model(torch.export.export(freeze(model.eval()), (x[:1],)), name="net")
    if dtype == "float32":
        expected = model.double()(x[:1].double()).detach().numpy()
        return tbn_tvm.compile(net, board), x[:1].numpy(), expected
    calibration = Calibration({net.signature.inputs[0].name: x.numpy()})
    expected = calibration.quantized(net).run(x[:1].numpy())[0]
    return tbn_tvm.compile(net, board, calibration=calibration), x[:1].numpy(), expected


def run(project, folder, x):
    """Outputs and instructions in the emulator."""
    with Session(project.save(folder)) as session:
        y = session.run(x)
        return y, session.statistics.instructions[-1]


@pytest.mark.emulator
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", MODELS[1:], ids=lambda make: make.__name__)
def test_vector_kernels_are_right_for_odd_shapes(make, dtype, tmp_path):
    project, x, expected = compiled(make, dtype)
    assert "tbn_mve_look_up" in project.files["net.c"].decode()
    y, _ = run(project, tmp_path / "project", x)
    if dtype == "int8":
        np.testing.assert_array_equal(y, expected)
    else:
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.emulator
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_autoencoder_takes_less_than_half_the_m4s_instructions(dtype, tmp_path):
    counts = []
    for board in (BOARD, "mps2-an386"):
        project, x, expected = compiled(autoencoder, dtype, board)
        y, count = run(project, tmp_path / board, x)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
        counts.append(count)
    assert 2 * counts[0] < counts[1] < 130_000


def test_cores_without_vectors_get_no_vector_code():
    project, _, _ = compiled(odd_dense, "float32", "mps2-an505")
    assert "mve" not in project.files["net.c"].decode()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 3), (4, 32), (9, 40), (22, 300)])
def test_packed_words_hold_every_sign_in_its_place(rows, columns, dtype):
    vectors = Vectors(dtype)
    signs = np.random.default_rng(0).random((rows, columns)) > 0.5
    words = vectors.pack(signs)
    tables = -(-columns // 4)
    assert words.size == vectors.words_in(tables, rows)
    seen = np.zeros(words.size, int)
    for row, column in np.ndindex(rows, columns):
        chunk, table = divmod(column // 4, vectors.chunk_tables)
        word, nibble = divmod(table, vectors.word_tables)
        in_chunk = min(vectors.chunk_tables, tables - chunk * vectors.chunk_tables)
        in_row = -(-in_chunk // vectors.word_tables)
        at = chunk * vectors.words_in(vectors.chunk_tables, rows)
        at += (row // vectors.lanes * in_row + word) * vectors.lanes + row % vectors.lanes
        assert words[at] >> (4 * nibble + column % 4) & 1 == signs[row, column]
        seen[at] += signs[row, column]
    assert [bin(int(word)).count("1") for word in words] == list(seen)
