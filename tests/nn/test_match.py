"""Orders of rows in which a tile fits better."""

import pytest
import torch

from tbn_tvm.nn.match import matching_order
from tbn_tvm.nn.start import nearest_tiling

pytest.importorskip("scipy")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("alpha", ["tile", "layer"])
def test_rows_that_were_shuffled_find_one_another(alpha):
    tile = torch.where(torch.randn(6, 40) > 0, 1.0, -1.0)
    scalars = torch.tensor([1.0, 2.0, 3.0, 4.0]) if alpha == "tile" else torch.ones(4)
    ordered = (scalars[:, None, None] * tile).reshape(24, 40)
    weight = ordered[torch.randperm(24)]
    assert nearest_tiling(weight, 4, alpha).explained < 0.6
    order = matching_order(weight, 4, alpha)
    assert nearest_tiling(weight[order], 4, alpha).explained == pytest.approx(1)


def test_an_order_is_a_permutation_and_never_worse():
    weight = torch.randn(12, 5, 3)
    order = matching_order(weight, 3)
    assert order.sort().values.equal(torch.arange(12))
    assert nearest_tiling(weight[order], 3).explained >= nearest_tiling(weight, 3).explained


def test_the_same_weight_gets_the_same_order():
    weight = torch.randn(16, 20)
    state = torch.get_rng_state()
    first = matching_order(weight, 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, matching_order(weight, 4))
