"""Forecasting models: reversible instance normalisation, and what their tokens are."""

import pytest
import torch

from tbn_tvm.errors import UsageError
from tbn_tvm.models.instance_norm import ReversibleInstanceNorm
from tbn_tvm.models.registry import find_model

NAMES = ["tsmixer", "series-transformer", "series-transformer-steps"]


def test_instance_norm_standardises_each_variable_and_undoes_it():
    norm = ReversibleInstanceNorm(3)
    torch.nn.init.uniform_(norm.scale, 0.5, 2)
    torch.nn.init.normal_(norm.shift)
    x = torch.randn(4, 20, 3) * torch.tensor([1.0, 10, 0.1]) + torch.tensor([0.0, 50, -3])
    y, mean, deviation = norm(x)
    plain = (y - norm.shift) / norm.scale
    torch.testing.assert_close(plain.mean(1), torch.zeros(4, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(plain.std(1, correction=0), torch.ones(4, 3), atol=1e-2, rtol=0)
    torch.testing.assert_close(norm.restore(y, mean, deviation), x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_forecast_follows_its_series_shift_and_scale(name):
    model = find_model(name).reduced()
    module, (x,) = model.build().eval(), model.example_inputs(2)
    shift, scale = torch.tensor([3.0] * 7), torch.tensor([2.0] * 7)
    torch.testing.assert_close(
        module(x * scale + shift), module(x) * scale + shift, atol=1e-3, rtol=0
    )
    plain = model.build(reversible=False).eval()
    assert plain(x).shape == (2, 12, 7)
    assert not torch.allclose(plain(x + 3), plain(x) + 3, atol=1e-3)


def test_variables_as_tokens_have_no_order_and_steps_have_one():
    order = [3, 1, 0, 2, 6, 5, 4]
    model = find_model("series-transformer").reduced()
    module, (x,) = model.build(reversible=False).eval(), model.example_inputs(2)
    torch.testing.assert_close(module(x[..., order]), module(x)[..., order], atol=1e-5, rtol=1e-5)
    steps = find_model("series-transformer-steps").reduced().build(reversible=False).eval()
    assert not torch.allclose(steps(x.flip(1)), steps(x), atol=1e-3)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"tokens": "patches"}, "tokens='patches': expected variables or steps"),
        ({"dim": 16, "heads": 3}, "3 heads do not divide a width of 16"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(sizes, told):
    with pytest.raises(UsageError, match=told):
        find_model("series-transformer").build(**sizes)
