"""The passes in a pipeline: ours, and the stock TVM way."""

import numpy as np
import torch
import tvm
from tvm import relax

from tbn_tvm import pipeline, relay_passes
from tbn_tvm.frontend.torch import from_exported_program
from tbn_tvm.nn import TiledConv2d, TiledLinear, freeze
from tbn_tvm.schedules.cpu import KERNELS


class Net(torch.nn.Module):
    """Convolution, batch norm, ReLU, linear, GELU, linear."""

    def __init__(self):
        super().__init__()
        self.conv = TiledConv2d(3, 8, 3, p=4)
        self.norm = torch.nn.BatchNorm2d(8)
        self.fc1 = TiledLinear(8 * 16, 24, p=3)
        self.fc2 = TiledLinear(24, 10, p=1)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.fc2(torch.nn.functional.gelu(self.fc1(x.flatten(1))))


def made():
    """Module, input and PyTorch's output."""
    torch.manual_seed(0)
    net = Net()
    net.norm.running_mean.uniform_(-1, 1)
    net.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(4, 3, 6, 6)
    expected = net.eval()(x).detach().numpy()
    program = torch.export.export(
        freeze(net), (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    )
    return from_exported_program(program), x.numpy(), expected


def test_our_passes_work_in_a_stock_tvm_flow():
    """Nothing of tbn_tvm but its passes and the operators they bring."""
    mod, x, expected = made()
    flow = tvm.transform.Sequential(
        [
            relax.transform.FoldConstant(),
            relay_passes.FindTiledWeights(),
            relay_passes.RewriteTiledLayers(),
            relay_passes.FuseBias(),
            relay_passes.FoldBatchNorm(),
            relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
        ]
    )
    machine = relax.VirtualMachine(tvm.compile(flow(mod), "llvm"), tvm.cpu())
    (y,) = machine["main"](tvm.runtime.tensor(x))
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_operators_legalise_under_tvm_compile_with_no_pass_of_ours():
    mod, x, expected = made()
    machine = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    (y,) = machine["main"](tvm.runtime.tensor(x))
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_bias_batch_norm_and_activation_end_in_the_products_kernel():
    mod, _, _ = made()
    phases = [*pipeline.frontend_phases(), *pipeline.host_phases(tvm.target.Target("llvm"))]
    main = pipeline.run(mod, phases, tvm.target.Target("llvm"))["main"]
    kernels = [
        binding.value.args[0].name_hint
        for block in main.body.blocks
        for binding in block.bindings
        if isinstance(binding.value, relax.Call)
    ]
    products = [name for name in kernels if "tiled" in name]
    assert len(products) == 3
    assert "fused_tiled_conv2d_scatter_relu" in products
    assert not any("batch_norm" in name for name in kernels)
    # Dot products and flattening are the only work before and between the outputs.
    dots = [name for name in kernels if name.startswith(tuple(KERNELS))]
    assert len(dots) == 3
    assert all(name in products or name in dots or "reshape" in name for name in kernels)


def test_a_dump_has_one_file_a_phase_that_holds_the_ir(tmp_path):
    mod, _, _ = made()
    phases = [*pipeline.frontend_phases(), *pipeline.host_phases(tvm.target.Target("llvm"))]
    pipeline.run(mod, phases, tvm.target.Target("llvm"), tmp_path / "ir")
    texts = {path.stem: path.read_text() for path in (tmp_path / "ir").iterdir()}
    assert set(texts) == {name for name, _ in phases}
    assert "R.tbn.tiled_dense" in texts["1_recognise"]
    assert "R.nn.batch_norm" in texts["1_recognise"]
    assert "R.nn.batch_norm" not in texts["2_simplify"]
    assert "R.call_tir" in texts["3_lower"]
