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
