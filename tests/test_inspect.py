"""The numbers that describe a model."""

import numpy as np
import pytest
import torch

from tbn_tvm.compiler import import_model
from tbn_tvm.errors import FormatError, UsageError
from tbn_tvm.inspect import totals, without
from tbn_tvm.nn import TiledConv2d, TiledLinear, freeze


class Net(torch.nn.Module):
    """A tiled convolution, a float linear layer and a tiled one."""

    def __init__(self):
        super().__init__()
        self.conv = TiledConv2d(3, 8, 3, padding=1, p=4, bias=False)
        self.plain = torch.nn.Linear(8 * 16, 20)
        self.fc = TiledLinear(20, 6, p=3)

    def forward(self, x):
        return self.fc(self.plain(self.conv(x).flatten(1)))


@pytest.fixture(scope="module")
def layers():
    """Rows of the net, imported with a free batch."""
    torch.manual_seed(0)
    program = torch.export.export(
        freeze(Net()),
        (torch.zeros(2, 3, 4, 4),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
    )
    return import_model(program).layers


def test_layers_come_in_order_under_their_names(layers):
    assert [row.name for row in layers] == ["conv", "plain", "fc"]
    assert [row.p for row in layers] == [4, None, 3]


def test_a_tiled_convolution_is_described_for_one_sample(layers):
    row = layers[0]
    assert (row.shape, row.q, row.alignment, row.unique_rows) == ((8, 3, 3, 3), 54, "whole rows", 2)
    assert row.nbytes == 7 + 4 * 4
    assert row.bits_per_weight == pytest.approx((54 + 4 * 32) / 216)
    assert (row.float_bytes, row.binary_bytes) == (4 * 216, 27 + 4)
    assert (row.macs_dense, row.macs) == (216 * 16, 54 * 16)


def test_a_float_layer_is_described_as_it_is(layers):
    row = layers[1]
    assert (row.shape, row.nbytes, row.bits_per_weight) == ((20, 128), 4 * 2560, 32.0)
    assert row.macs == row.macs_dense == 2560


def test_a_layer_that_is_called_again_is_one_row_and_does_more_arithmetic():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.tiled, self.plain = TiledLinear(8, 8, p=4), torch.nn.Linear(8, 8)
            self.steps = torch.nn.LSTM(8, 8, bidirectional=True)

        def forward(self, x):
            return self.steps(self.plain(self.plain(self.tiled(self.tiled(x)))))[0]

    program = torch.export.export(freeze(Twice()), (torch.zeros(5, 8),))
    tiled, plain, *steps = import_model(program).layers
    assert (tiled.name, plain.name) == ("tiled", "plain")
    assert (tiled.products, plain.products) == ((0, 1), (2, 3))
    assert (tiled.nbytes, tiled.macs_dense, tiled.macs) == (2 + 4 * 4, 2 * 5 * 64, 2 * 5 * 16)
    assert (plain.nbytes, plain.macs) == (4 * 64, 2 * 5 * 64)
    # Of each direction: one product with the input's weights, and one a step with the state's, but
    # for the first, whose state is zero.
    assert {row.name for row in steps} == {"steps"}
    assert [len(row.products) for row in steps] == [1, 4, 1, 4]
    assert [row.macs for row in steps] == [5 * 32 * 8, 4 * 32 * 8] * 2


def test_layers_with_equal_weights_stay_apart():
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    for layer in net:
        torch.nn.init.zeros_(layer.weight)
    rows = import_model(torch.export.export(net, (torch.zeros(1, 4),))).layers
    assert [(row.name, row.products) for row in rows] == [("0", (0,)), ("1", (1,))]


def test_totals_are_over_all_weights(layers):
    sums = totals(layers)
    assert sums["weights"] == 216 + 2560 + 120
    assert sums["tiled_weights"] == 216 + 120
    assert sums["nbytes"] == sum(row.nbytes for row in layers)
    assert sums["bits_per_weight"] == pytest.approx(
        (54 + 128 + 32 * 2560 + 40 + 96) / sums["weights"]
    )


def test_layers_are_left_out_by_name(layers):
    assert [row.name for row in without(layers, ["c*", "fc"])] == ["plain"]
    assert without(layers, []) == layers
    with pytest.raises(UsageError, match="no layer is called 'head'; there are conv, plain, fc"):
        without(layers, ["head"])


def test_rows_that_share_a_tile_by_phase_are_counted_once():
    program = torch.export.export(
        freeze(torch.nn.Sequential(TiledLinear(10, 12, p=8))), (torch.zeros(1, 10),)
    )
    (row,) = import_model(program).layers
    assert (row.q, row.alignment, row.unique_rows, row.macs) == (15, "ragged", 3, 30)


def test_alphas_that_are_no_numbers_are_refused_by_layer_name():
    model = freeze(torch.nn.Sequential(TiledLinear(10, 12, p=4)))
    model[0].alpha[2] = np.nan
    program = torch.export.export(model, (torch.zeros(1, 10),))
    with pytest.raises(FormatError, match=r"layer '0': alpha 2 is nan"):
        import_model(program)


def test_megabits_count_tile_entries_alphas_and_float_weights(layers):
    bits = (54 + 32 * 4) + 32 * 2560 + (40 + 32 * 3)
    assert totals(layers)["mbit"] == pytest.approx(bits / 1e6)
