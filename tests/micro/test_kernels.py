"""Generated C against float64, compiled for this machine: many shapes, quickly."""

import ctypes
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tbn_tvm
from tbn_tvm.nn import TiledConv2d, TiledLinear, freeze
from tbn_tvm.tiling import _divisors

FLAGS = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-fsanitize=undefined"]


def run_generated_c(project, folder, x):
    """Compile a project's model with the host's compiler and run it on one sample a row."""
    project.save(folder / "project")
    library = folder / "model.so"
    subprocess.run(
        [
            "gcc",
            *FLAGS,
            "-fno-sanitize-recover=all",
            "-shared",
            "-fPIC",
            f"{project.name}.c",
            "-lm",
            "-o",
            library,
        ],
        cwd=folder / "project",
        check=True,
    )
    loaded = ctypes.CDLL(str(library))
    (given_name,) = (spec.name for spec in project.signature.inputs)
    read = getattr(loaded, f"{project.name}_input_{given_name}")
    write = getattr(loaded, f"{project.name}_output_output")
    read.restype = write.restype = ctypes.POINTER(ctypes.c_float)
    shape = project.signature.outputs[0].with_batch(1).shape
    rows = []
    for sample in x:
        np.ctypeslib.as_array(read(), (sample.size,))[:] = sample.reshape(-1)
        getattr(loaded, f"{project.name}_run")()
        rows.append(np.ctypeslib.as_array(write(), (int(np.prod(shape)),)).copy())
    return np.stack(rows).reshape(len(x), *shape[1:])


def exported(model, x):
    """A frozen model as a program with a free batch."""
    return torch.export.export(
        freeze(model), (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    )


class Functions(torch.nn.Module):
    """What models compute elementwise, and where each needs another function of C."""

    def forward(self, x):
        return torch.cat([x.abs(), torch.nn.functional.normalize(x), x.isinf().float()], 1)


def test_functions_without_a_name_in_tvm_are_those_of_c(tmp_path):
    x = torch.tensor([[-1.5, 0.0, -0.0, 2.0], [3.0, -4.0, 1e-20, -1e30]])
    project = tbn_tvm.compile(exported(Functions(), x), "mps2-an386", name="functions")
    y = run_generated_c(project, tmp_path, x.numpy())
    np.testing.assert_allclose(y, Functions()(x).numpy(), rtol=1e-6)


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_dense_kernels_of_any_alignment(tmp_path_factory, data):
    m, n = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 70))
    p = data.draw(st.sampled_from(_divisors(m * n)))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    layer = TiledLinear(n, m, p=p, alpha=data.draw(st.sampled_from(["tile", "layer"])))
    x = torch.randn(2, n)
    expected = torch.nn.functional.linear(
        x.double(), layer.weight.detach().double(), layer.bias.detach().double()
    )
    project = tbn_tvm.compile(exported(torch.nn.Sequential(layer), x), "mps2-an386", name="net")
    y = run_generated_c(project, tmp_path_factory.mktemp("c"), x.numpy())
    np.testing.assert_allclose(y, expected.numpy(), rtol=1e-5, atol=1e-5)


class ConvNet(torch.nn.Module):
    """Two tiled convolutions with batch norm, pooling, and a tiled linear layer."""

    def __init__(self):
        super().__init__()
        self.conv1 = TiledConv2d(1, 8, 3, padding=1, p=4)
        self.norm = torch.nn.BatchNorm2d(8)
        self.conv2 = TiledConv2d(8, 12, 3, stride=2, groups=2, p=2, bias=False)
        self.fc = TiledLinear(12 * 3 * 3, 10, p=5)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv1(x)))
        x = torch.nn.functional.max_pool2d(x, 2)
        x = torch.nn.functional.gelu(self.conv2(x))
        return torch.softmax(self.fc(x.flatten(1)), 1)


def conv_net():
    """The network with statistics that are not those of a fresh batch norm."""
    torch.manual_seed(0)
    net = ConvNet()
    net.norm.running_mean.uniform_(-1, 1)
    net.norm.running_var.uniform_(0.5, 2)
    return net.eval()


def test_a_network_with_batch_norm_pooling_gelu_and_softmax(tmp_path):
    x = torch.randn(3, 1, 14, 14)
    net = conv_net()
    expected = net.double()(x.double()).detach().numpy()
    project = tbn_tvm.compile(exported(net.float(), x), "mps2-an386", name="net")
    y = run_generated_c(project, tmp_path, x.numpy())
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=1e-6)


def test_generated_c_has_no_heap_no_stdio_and_weights_in_flash(tmp_path):
    x = torch.randn(3, 1, 14, 14)
    project = tbn_tvm.compile(exported(conv_net(), x), "mps2-an386", name="net")
    source = project.files["net.c"].decode()
    for banned in ("malloc", "free(", "stdio", "printf", "tvm/", "TVM"):
        assert banned not in source
    arrays = [line for line in source.splitlines() if "net_weights_" in line and "[" in line]
    definitions = [line for line in arrays if line.endswith("= {")]
    assert definitions
    assert all(line.startswith("static const ") for line in definitions)


def test_a_model_compiled_twice_gives_the_same_files():
    x = torch.randn(3, 1, 14, 14)
    first, second = (
        tbn_tvm.compile(exported(conv_net(), x), "mps2-an386", name="net") for _ in range(2)
    )
    assert first.digest == second.digest
    assert first.files == second.files


@pytest.mark.parametrize("value", [1.2345678, 3.3333333e-5, 16777216.0, -7.1e-20, 0.1])
def test_float_weights_survive_printing_to_the_last_bit(value, tmp_path):
    class Shift(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("by", torch.full((4,), value))

        def forward(self, x):
            return x * self.by

    x = torch.ones(1, 4)
    project = tbn_tvm.compile(torch.export.export(Shift(), (x,)), "mps2-an386", name="net")
    y = run_generated_c(project, tmp_path, x.numpy())
    np.testing.assert_array_equal(y, np.full((1, 4), value, "float32"))


class Opaque(torch.nn.Module):
    """Operators that TVM has as one opaque kernel, or as a routine of its run time."""

    def forward(self, x):
        places = (torch.arange(4) + (x[:, :1] > 0).long()) % 4
        best, where = x.topk(2, 1)
        return torch.cat(
            [
                torch.zeros_like(x).scatter(1, places, x),
                x.cumsum(1),
                x.sort(1, True).values,
                x.argsort(1).float(),
                best,
                where.float(),
                torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0])).float(),
            ],
            1,
        )


def test_scatters_scans_and_sorts_are_loops(tmp_path):
    x = torch.tensor([[-1.5, 0.0, 3.0, 2.0], [2.0, -4.0, 2.5, -0.5]])
    program = torch.export.export(Opaque(), (x[:1],))
    y = run_generated_c(tbn_tvm.compile(program, "mps2-an386", name="opaque"), tmp_path, x.numpy())
    expected = torch.cat([Opaque()(row[None]) for row in x])
    np.testing.assert_allclose(y.reshape(2, -1), expected.numpy(), rtol=1e-6)
