"""Losses against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import helper
from torch.nn.functional import cross_entropy, log_softmax, nll_loss

from tbn_tvm.errors import FormatError
from tbn_tvm.evaluate import evaluate
from tbn_tvm.frontend.onnx import prepare
from tbn_tvm.importing import import_model

NODE = helper.make_node


@pytest.mark.parametrize("ignore", [None, 2, -1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("axes", [(), (2, 3)], ids=["rows", "images"])
def test_losses(models, axes, weighted, ignore):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, *axes, generator=generator)
    target = torch.randint(0, 5, (3, *axes), generator=generator)
    target.view(-1)[0] = 2 if ignore is None else ignore
    weight = torch.rand(5, generator=generator) if weighted else None
    names = ["x", "t", *(["w"] if weighted else [])]
    attributes = {} if ignore is None else {"ignore_index": ignore}
    reductions = ("none", "sum", "mean")
    nodes = [
        NODE("NegativeLogLikelihoodLoss", names, [f"nll_{r}"], reduction=r, **attributes)
        for r in reductions
    ]
    nodes += [
        NODE("SoftmaxCrossEntropyLoss", names, [f"ce_{r}", f"log_{r}"], reduction=r, **attributes)
        for r in reductions
    ]
    outputs = {
        f"{kind}_{r}": [3, *axes] if r == "none" else []
        for kind in ("nll", "ce")
        for r in reductions
    }
    model = models.make(
        nodes,
        {"x": list(x.shape), "t": ("INT64", list(target.shape))},
        outputs | {"log_sum": list(x.shape)},
        {"w": weight.numpy()} if weighted else {},
    )
    given = {} if ignore is None else {"ignore_index": ignore}
    expected = [
        loss(x, target, weight, reduction=r, **given)
        for loss in (nll_loss, cross_entropy)
        for r in reductions
    ]
    results = evaluate(import_model(prepare(model)), [x.numpy(), target.numpy()])
    for name, result, value in zip(outputs, results, expected, strict=False):
        np.testing.assert_allclose(result, value, rtol=1e-5, atol=1e-6, err_msg=name)
        assert result.shape == tuple(value.shape)
    np.testing.assert_allclose(results[-1], log_softmax(x, 1), rtol=1e-5, atol=1e-6)


def test_a_loss_of_another_reduction_is_refused(models):
    node = NODE("NegativeLogLikelihoodLoss", ["x", "t"], ["y"], reduction="median")
    model = models.make([node], {"x": [3, 5], "t": ("INT64", [3])}, {"y": []})
    with pytest.raises(FormatError, match="reduction 'median' is not supported"):
        import_model(prepare(model))
