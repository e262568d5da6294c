"""Import from PyTorch."""

import numpy as np
import pytest
import torch
import tvm
from tvm import relax

import tbn_tvm
from tbn_tvm.errors import TbnError
from tbn_tvm.frontend.torch import from_exported_program
from tbn_tvm.nn import TiledConv1d, TiledConv2d, TiledLinear, freeze
from tbn_tvm.testing.function_module import Function


def operators(mod):
    """Names of the operators that main calls."""
    return [
        binding.value.op.name
        for block in mod["main"].body.blocks
        for binding in block.bindings
        if isinstance(binding.value, relax.Call) and isinstance(binding.value.op, tvm.ir.Op)
    ]


@pytest.mark.parametrize(
    ("layer", "shape", "operator"),
    [
        (TiledLinear(12, 8, p=4), (3, 5, 12), "relax.tbn.tiled_dense"),
        (TiledConv1d(4, 8, 3, padding=1, groups=2, p=2), (3, 4, 9), "relax.tbn.tiled_conv1d"),
        (TiledConv2d(4, 8, 3, stride=2, p=2, bias=False), (3, 4, 9, 9), "relax.tbn.tiled_conv2d"),
        (
            TiledConv2d(4, 8, 3, padding=1, padding_mode="reflect", p=2),
            (3, 4, 9, 9),
            "relax.tbn.tiled_conv2d",
        ),
    ],
)
def test_a_frozen_layer_is_one_operator_and_runs_the_same_with_any_batch(layer, shape, operator):
    torch.manual_seed(0)
    model, x = freeze(torch.nn.Sequential(layer)), torch.randn(shape)
    program = torch.export.export(
        model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    )
    mod = from_exported_program(program)
    assert operators(mod).count(operator) == 1
    machine = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    for batch in (1, 3):
        (y,) = machine["main"](tvm.runtime.tensor(x[:batch].contiguous().numpy()))
        expected = model(x[:batch]).detach().numpy()
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_saved_program_imports_as_the_one_in_memory(tmp_path):
    program = torch.export.export(
        freeze(torch.nn.Sequential(TiledLinear(12, 8, p=4))), (torch.zeros(1, 12),)
    )
    torch.export.save(program, tmp_path / "model.pt2")
    tvm.ir.assert_structural_equal(
        from_exported_program(torch.export.load(tmp_path / "model.pt2")),
        from_exported_program(program),
    )


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: x[:, -1], id="last of an axis"),
        pytest.param(lambda x: x[..., -2], id="last but one of the last axis"),
        pytest.param(lambda x: x[:, [-1, 0]], id="a list with a negative index"),
        pytest.param(lambda x: x[:, torch.tensor([-1, 2])], id="a tensor with a negative index"),
        pytest.param(lambda x: x[:, -3:-1], id="a slice from the end"),
        pytest.param(torch.nn.functional.selu, id="selu"),
        pytest.param(lambda x: torch.nn.functional.elu(x, 0.5), id="elu"),
        pytest.param(torch.nn.functional.celu, id="celu"),
        pytest.param(
            lambda x: torch.nn.functional.group_norm(x[:, :4], 2), id="groups without scales"
        ),
        pytest.param(
            lambda x: torch.nn.functional.group_norm(x[0], 2, torch.arange(8.0), torch.ones(8)),
            id="groups of two axes",
        ),
        pytest.param(lambda x: x.amax(2), id="greatest of an axis"),
        pytest.param(lambda x: x.amin((0, 2), keepdim=True), id="least of two axes"),
        pytest.param(lambda x: x.amax(), id="greatest of all"),
        pytest.param(lambda x: x.max(-1).values, id="greatest of the last axis"),
        pytest.param(lambda x: x.round().min(1, True)[1].float(), id="first index of the least"),
        pytest.param(lambda x: x.log_softmax(-1), id="logarithm of softmax"),
        pytest.param(lambda x: x.var(1, keepdim=True, unbiased=False), id="variance"),
        pytest.param(lambda x: x.std(1), id="deviation with a correction"),
        pytest.param(lambda x: x @ x.transpose(1, 2) @ x, id="products of activations"),
        pytest.param(lambda x: x[:, :1].expand(-1, 3, -1), id="an axis repeated"),
        pytest.param(lambda x: x.repeat(2, 1, 3), id="copies"),
        pytest.param(lambda x: x + torch.eye(8)[:5], id="an identity matrix"),
    ],
)
def test_what_stock_importers_get_wrong_is_right(function):
    x = torch.randn(2, 5, 8)
    mod = from_exported_program(torch.export.export(Function(function), (x,)))
    machine = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    (y,) = machine["main"](tvm.runtime.tensor(x.numpy()))
    np.testing.assert_allclose(y.numpy(), function(x).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "mean", "tolerance"),
    [
        (torch.float32, 1000, 0.01),
        (torch.float64, 1000, 1e-9),
        (torch.float16, 0, 2e-3),
        (torch.bfloat16, 0, 2e-2),
    ],
)
@pytest.mark.parametrize(
    "norm",
    [
        pytest.param(lambda x, _, __: torch.nn.functional.group_norm(x, 2), id="groups"),
        pytest.param(
            lambda x, w, b: torch.nn.functional.group_norm(x, 2, w, b), id="groups with scales"
        ),
        pytest.param(lambda x, _, __: torch.nn.functional.instance_norm(x), id="instances"),
        pytest.param(
            lambda x, w, b: torch.nn.functional.instance_norm(x, weight=w, bias=b),
            id="instances with scales",
        ),
    ],
)
def test_norms_keep_a_deviation_much_below_the_mean(norm, dtype, mean, tolerance):
    torch.manual_seed(0)
    w, b = torch.linspace(-1, 2, 4).double(), torch.linspace(1, -2, 4).double()

    def function(x):
        return norm(x, w.to(x.dtype), b.to(x.dtype))

    x = (mean + 0.05 * torch.randn(2, 4, 8, 8)).to(dtype)
    mod = from_exported_program(torch.export.export(Function(function), (x,)))
    machine = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    y = torch.from_dlpack(machine["main"](tvm.runtime.from_dlpack(x))[0])
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), norm(x.double(), w, b), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(torch.nn.functional.instance_norm, id="instance norm without statistics"),
        pytest.param(
            lambda x: torch.nn.functional.pad(x, (1, 2, 3, 0), mode="circular"), id="around"
        ),
        pytest.param(lambda x: torch.nn.functional.max_pool2d(x, 2, dilation=2), id="dilation"),
        pytest.param(
            lambda x: torch.nn.functional.interpolate(x.flatten(2), size=30, mode="linear"),
            id="resized rows",
        ),
    ],
)
def test_any_batch(function):
    x, batch = torch.randn(2, 4, 6, 6), torch.export.Dim("batch")

    class Model(torch.nn.Module):
        def forward(self, x):
            return function(x)

    program = torch.export.export(Model(), (x,), dynamic_shapes=({0: batch},))
    x = torch.randn(3, 4, 6, 6)
    np.testing.assert_allclose(
        tbn_tvm.compile(program).run(x.numpy()), function(x), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: x + torch.randn_like(x), id="noise"),
        pytest.param(lambda x: torch.nn.functional.dropout(x, 0.5, True), id="dropout"),
        pytest.param(lambda x: x * torch.rand(6), id="uniform"),
    ],
)
def test_random_numbers_are_refused(function):
    class Model(torch.nn.Module):
        def forward(self, x):
            return function(x)

    with pytest.raises(TbnError, match="draws random numbers"):
        tbn_tvm.compile(torch.export.export(Model(), (torch.zeros(2, 6),)))


def test_groups_of_any_batch_are_normalised():
    model, x = torch.nn.GroupNorm(2, 4), 1000 + 0.05 * torch.randn(3, 4, 8, 8)
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    mod = from_exported_program(torch.export.export(model, (x,), dynamic_shapes=shapes))
    machine = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    expected = torch.nn.functional.group_norm(x.double(), 2).numpy()
    for batch in (1, 3):
        (y,) = machine["main"](tvm.runtime.tensor(x[:batch].contiguous().numpy()))
        np.testing.assert_allclose(y.numpy(), expected[:batch], rtol=0.01, atol=0.01)


@pytest.mark.parametrize("shifts", [(-1, 3), (9, 0)])
def test_rolling_is_slices_and_no_gather(shifts):
    def roll(x):
        return torch.roll(x, shifts, dims=(1, 2))

    x = torch.randn(2, 5, 8)
    mod = from_exported_program(torch.export.export(Function(roll), (x,)))
    assert "relax.take" not in operators(mod)
    machine = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    (y,) = machine["main"](tvm.runtime.tensor(x.numpy()))
    np.testing.assert_array_equal(y.numpy(), roll(x).numpy())


def test_a_linear_layer_in_half_precision_keeps_its_dtype():
    model, x = torch.nn.Linear(6, 4).half(), torch.randn(2, 6).half()
    mod = from_exported_program(torch.export.export(model, (x,)))
    machine = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    (y,) = machine["main"](tvm.runtime.tensor(x.numpy()))
    np.testing.assert_allclose(y.numpy(), model(x).detach().numpy(), rtol=5e-3, atol=5e-3)
