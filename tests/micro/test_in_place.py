"""Results written over operands: only where the loops allow it, and right when they run."""

import re

import numpy as np
import pytest
import torch
import tvm
from tvm.script import tirx as T

import tbn_tvm
from tbn_tvm.errors import UsageError
from tbn_tvm.micro import Session, protocol
from tbn_tvm.micro.kernels import lower_kernel
from tbn_tvm.nn import TiledLinear, freeze


def pairs(func: tvm.tirx.PrimFunc) -> set:
    """Operands and results by name."""
    kernel = lower_kernel(func, "kernel")
    return {(func.params[a].name, func.params[b].name) for a, b in kernel.in_place}


@T.prim_func(private=True, s_tir=True)
def add(
    a: T.Buffer((4, 8), "float32"), b: T.Buffer((8,), "float32"), c: T.Buffer((32,), "float32")
):
    for i, j in T.grid(4, 8):
        c[i * 8 + j] = a[i, j] * a[i, j] + b[j]


@T.prim_func(private=True, s_tir=True)
def transpose(a: T.Buffer((8, 8), "float32"), c: T.Buffer((8, 8), "float32")):
    for i, j in T.grid(8, 8):
        c[i, j] = a[j, i]


@T.prim_func(private=True, s_tir=True)
def shift(a: T.Buffer((8,), "float32"), c: T.Buffer((8,), "float32")):
    for i in range(8):
        c[i] = a[i] + a[7 - i]


@T.prim_func(private=True, s_tir=True)
def twice(a: T.Buffer((8,), "float32"), c: T.Buffer((8,), "float32")):
    for _, i in T.grid(2, 8):
        c[i] = a[i] + T.float32(1)


@T.prim_func(private=True, s_tir=True)
def total(a: T.Buffer((8,), "float32"), c: T.Buffer((8,), "float32")):
    for i in range(8):
        c[i] = T.float32(0)
    for i, j in T.grid(8, 8):
        c[i] = c[i] + a[j]


@T.prim_func(private=True, s_tir=True)
def late(a: T.Buffer((8,), "float32"), c: T.Buffer((8,), "float32"), d: T.Buffer((8,), "float32")):
    for i in range(8):
        c[i] = a[i] * T.float32(2)
        d[i] = a[i] * T.float32(3)


@T.prim_func(private=True, s_tir=True)
def narrow(a: T.Buffer((8,), "int32"), c: T.Buffer((8,), "float32")):
    for i in range(8):
        c[i] = T.Cast("float32", a[i])


@T.prim_func(private=True, s_tir=True)
def normalise(a: T.Buffer((8,), "float32"), c: T.Buffer((8,), "float32")):
    with T.sblock("root"):
        most = T.sblock_alloc_buffer((1,), "float32")
        most[0] = a[0]
        for i in range(8):
            most[0] = T.max(most[0], a[i])
        for i in range(8):
            c[i] = a[i] - most[0]


@T.prim_func(private=True, s_tir=True)
def ahead(a: T.Buffer((8,), "float32"), c: T.Buffer((8,), "float32")):
    with T.sblock("root"):
        kept = T.sblock_alloc_buffer((1,), "float32")
        for i in range(8):
            kept[0] = a[7 - i]
            c[i] = a[i] - kept[0]


@pytest.mark.parametrize(
    ("func", "expected"),
    [
        pytest.param(add, {("a", "c")}, id="elementwise, other shapes"),
        pytest.param(transpose, set(), id="transposed"),
        pytest.param(shift, set(), id="another element too"),
        pytest.param(twice, set(), id="written twice"),
        pytest.param(total, set(), id="a sum"),
        pytest.param(late, {("a", "d")}, id="read after one result is written"),
        pytest.param(narrow, set(), id="another type"),
        pytest.param(normalise, {("a", "c")}, id="read in a loop before"),
        pytest.param(ahead, set(), id="read ahead in the same loop"),
    ],
)
def test_an_operand_is_written_over_only_where_nothing_of_it_is_read_later(func, expected):
    assert pairs(func) == expected


class Residual(torch.nn.Module):
    """Adds a tiled layer's output to its input."""

    def __init__(self, width=256):
        super().__init__()
        self.first = TiledLinear(16, width, p=4)
        self.inner = TiledLinear(width, width, p=4)
        self.last = TiledLinear(width, 10, p=2)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.inner(x))
        return self.last(x + x)


@pytest.fixture(scope="module")
def residual():
    """The residual net, trained by nobody."""
    torch.manual_seed(0)
    x = torch.randn(2, 16)
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(freeze(Residual()), (x,), dynamic_shapes=({0: batch},))


def test_a_residual_net_needs_less_where_its_sum_is_written_over_its_input(residual):
    project = tbn_tvm.compile(residual, "mps2-an386", name="net")
    inner = 256 * 4
    # At the sum: the input, the unique dot products, and no second buffer for the result.
    assert project.memory["arena"] == project.memory["arena_lower_bound"] < 2 * inner
    source = project.files["net.c"].decode()
    (over,) = set(re.findall(r", written over (\w+)", source))
    assert "relu" in over


@pytest.mark.emulator
@pytest.mark.parametrize("io", ["arena", "static"])
def test_a_residual_net_in_place_computes_what_the_host_does(residual, io, tmp_path):
    x = np.random.default_rng(0).normal(size=(3, 16)).astype("float32")
    expected = tbn_tvm.compile(residual, "llvm").run(x)
    for board in ("microbit", "mps2-an386"):
        project = tbn_tvm.compile(residual, board, name="net", io=io)
        with Session(project.save(tmp_path / board)) as session:
            np.testing.assert_allclose(session.run(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.emulator
def test_inputs_of_their_own_survive_a_run_and_inputs_in_the_arena_need_not(residual, tmp_path):
    given = np.random.default_rng(1).normal(size=(1, 16)).astype("float32")
    data, arenas = given.tobytes(), {}
    for io in ("arena", "static"):
        project = tbn_tvm.compile(residual, "mps2-an386", name="net", io=io)
        arenas[io] = project.memory["arena"]
        assert project.memory["io"] == (16 * 4 + 10 * 4 if io == "static" else 0)
        header = project.files["net.h"].decode()
        assert ("a run leaves its inputs as they are" in header) == (io == "static")
        with Session(project.save(tmp_path / io)) as session:
            session.run(given)
            if io == "static":
                ticks, _ = protocol.run(session._link, [data], 1, 10)
                assert ticks > 0
            else:
                with pytest.raises(protocol.DamagedInput):
                    protocol.run(session._link, [data], 1, 10)
    assert arenas["static"] <= arenas["arena"]


def test_io_is_one_of_two_and_for_boards(residual):
    with pytest.raises(UsageError, match="'heap': expected arena or static"):
        tbn_tvm.compile(residual, "mps2-an386", name="net", io="heap")
    with pytest.raises(UsageError, match="for boards"):
        tbn_tvm.compile(residual, "llvm", io="static")
