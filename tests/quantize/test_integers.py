"""Compiled integer models equal their NumPy definition bit for bit, and floats nearly."""

import ctypes
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tbn_tvm
from tbn_tvm.compiler import import_model
from tbn_tvm.errors import InputError, TbnError, UsageError
from tbn_tvm.micro.quantization import Calibration
from tbn_tvm.nn import TiledConv2d, TiledLinear, freeze
from tbn_tvm.quantize import Scheme

FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-fsanitize=undefined")


def imported(model, x):
    """A frozen model of one sample in the graph IR."""
    program = torch.export.export(freeze(model.eval()), (x[:1],))
    return import_model(program, name="net")


def calibrated(net, x, scheme=Scheme.AFFINE):
    """Samples for the one input of a model."""
    return Calibration({net.signature.inputs[0].name: x.numpy()}, scheme)


class HostBuild:
    """The generated C of an integer model, built for this machine: integers in, integers out."""

    def __init__(self, net, calibration):
        self.folder = tempfile.TemporaryDirectory()
        folder = Path(self.folder.name)
        project = tbn_tvm.compile(net, "mps2-an386", calibration=calibration)
        project.save(folder / "project")
        command = ["gcc", *FLAGS, "-shared", "-fPIC", f"{project.name}.c", "-lm", "-o", "../net.so"]
        subprocess.run(command, cwd=folder / "project", check=True)
        library = ctypes.CDLL(str(folder / "net.so"))
        device = project.quantization.on_device(project.signature)
        self._start = getattr(library, f"{project.name}_run")
        self._input = self._array(library, f"{project.name}_input_", device.inputs[0])
        self._output = self._array(library, f"{project.name}_output_", device.outputs[0])

    @staticmethod
    def _array(library, prefix, spec):
        find = getattr(library, prefix + spec.name)
        find.restype = ctypes.POINTER(ctypes.c_int8 if spec.dtype == "int8" else ctypes.c_int16)
        return np.ctypeslib.as_array(find(), spec.with_batch(1).shape)

    def __call__(self, x):
        self._input[:] = x
        self._start()
        return self._output.copy()


class Residual(nn.Module):
    """Convolutions with a shortcut, both poolings, a mean and a linear layer."""

    def __init__(self, channels, p, pool):
        super().__init__()
        self.first = TiledConv2d(3, channels, 3, padding=1, p=p)
        self.second = TiledConv2d(channels, channels, 3, padding=1, p=p)
        self.pool = pool
        self.last = TiledLinear(channels, 5, p=1)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = self.pool(torch.relu(x + self.second(x)))
        return self.last(x.mean((2, 3)))


POOLS = (nn.MaxPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 1, 1))


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_random_dense_models_are_bit_exact(data):
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    width, layers = data.draw(st.integers(3, 60)), []
    size = width
    for _ in range(data.draw(st.integers(1, 3))):
        made = data.draw(st.integers(1, 40))
        p = data.draw(st.sampled_from([p for p in (1, 2, 3, 4, 6) if made * size % p == 0]))
        layers += [TiledLinear(size, made, p=p, bias=data.draw(st.booleans())), nn.ReLU()]
        size = made
    model = nn.Sequential(*layers[:-1])
    x = torch.randn(6, width)
    net = imported(model, x)
    calibration = calibrated(net, x, data.draw(st.sampled_from(list(Scheme))))
    integers, run = calibration.quantized(net), HostBuild(net, calibration)
    name = next(iter(integers.inputs))
    for sample in x.numpy():
        given_ = integers.tensors[name].quantize(sample[None])
        np.testing.assert_array_equal(run(given_), integers.run_integers(given_)[0])


@pytest.mark.parametrize("pool", POOLS, ids=repr)
@pytest.mark.parametrize("scheme", Scheme)
def test_convolutions_shortcuts_and_pooling_are_bit_exact_and_near_the_float_model(pool, scheme):
    torch.manual_seed(0)
    model, x = Residual(8, 4, pool).eval(), torch.randn(8, 3, 9, 9)
    net = imported(model, x)
    calibration = calibrated(net, x, scheme)
    integers, run = calibration.quantized(net), HostBuild(net, calibration)
    for sample in x.numpy()[:3]:
        given_ = integers.tensors["x"].quantize(sample[None])
        np.testing.assert_array_equal(run(given_), integers.run_integers(given_)[0])
    expected = model(x).detach().numpy()
    assert np.abs(integers.run(x.numpy())[0] - expected).max() < 0.05 * np.abs(expected).max()


def test_extreme_inputs_do_not_overflow():
    torch.manual_seed(0)
    model = nn.Sequential(TiledLinear(300, 16, p=4), nn.ReLU(), TiledLinear(16, 4, p=1))
    x = torch.randn(4, 300)
    net = imported(model, x)
    calibration = calibrated(net, x)
    integers, run = calibration.quantized(net), HostBuild(net, calibration)
    name = next(iter(integers.inputs))
    assert integers.tensors[name].dtype == "int8"
    signs = integers.operations[0]._rows[0].sum(0)
    for given_ in (np.full(300, 127), np.full(300, -128), np.where(signs > 0, 127, -128)):
        given_ = given_.astype("int8")[None]
        np.testing.assert_array_equal(run(given_), integers.run_integers(given_)[0])


@pytest.mark.data
def test_mnist_accuracy_is_within_a_third_of_a_point_of_float(example, mnist_digits):
    net = import_model(example / "mnist_mlp.pt2")
    images = np.asarray(mnist_digits.test_images, np.float32)
    labels = np.asarray(mnist_digits.test_labels)
    training = np.asarray(mnist_digits.train_images[:200], np.float32)
    calibration = Calibration({"x": training})
    integers, run = calibration.quantized(net), HostBuild(net, calibration)
    scale = integers.tensors["x"]
    classes = [run(scale.quantize(image[None])).argmax() for image in images]
    floats = tbn_tvm.compile(net, "host").run(images).argmax(1)
    accuracy, reference = (np.mean(c == labels) for c in (np.array(classes), floats))
    assert abs(accuracy - reference) < 0.003


FUNCTIONS = (nn.GELU(), nn.Sigmoid(), nn.Tanh(), nn.LeakyReLU(0.1), nn.Softmax(-1))


@pytest.mark.parametrize("scheme", Scheme)
def test_functions_of_one_number_and_softmax_are_bit_exact_and_near_the_float_model(scheme):
    """In one model, each between two layers; the last softmax is the model's output."""
    torch.manual_seed(0)
    layers = []
    for function in FUNCTIONS:
        layers += [TiledLinear(16, 16, p=4), function]
    model, x = nn.Sequential(TiledLinear(12, 16, p=4), *FUNCTIONS[-1:], *layers), torch.randn(8, 12)
    net = imported(model, x)
    calibration = calibrated(net, x, scheme)
    integers, run = calibration.quantized(net), HostBuild(net, calibration)
    name = next(iter(integers.inputs))
    for sample in x.numpy():
        given_ = integers.tensors[name].quantize(sample[None])
        np.testing.assert_array_equal(run(given_), integers.run_integers(given_)[0])
    expected = model(x).detach().numpy()
    assert np.abs(integers.run(x.numpy())[0] - expected).max() < 0.05
    assert integers.tensors[integers.outputs[0]].dtype == "int16"


def test_an_output_that_is_computed_with_as_well_has_the_bits_that_kernels_take():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = TiledLinear(8, 6, p=2), TiledLinear(6, 4, p=2)

        def forward(self, x):
            features = self.first(x)
            return features, self.second(features)

    torch.manual_seed(0)
    model, x = Two().eval(), torch.randn(6, 8)
    net = imported(model, x)
    integers = calibrated(net, x).quantized(net)
    assert [integers.tensors[name].dtype for name in integers.outputs] == ["int8", "int16"]
    for made, expected in zip(integers.run(x.numpy()), model(x), strict=True):
        expected = expected.detach().numpy()
        assert np.abs(made - expected).max() < 0.05 * np.abs(expected).max()


def test_operators_without_an_integer_form_are_named():
    class Sine(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = TiledLinear(8, 4, p=2)

        def forward(self, x):
            return torch.sin(self.layer(x))

    with pytest.raises(TbnError, match=r"sin has no integer form"):
        x = torch.randn(2, 8)
        net = imported(Sine(), x)
        calibrated(net, x).quantized(net)


@pytest.mark.parametrize("samples", [np.zeros((0, 8)), np.full((2, 8), np.nan), np.zeros((2, 7))])
def test_useless_samples_are_refused(samples):
    net = imported(nn.Sequential(TiledLinear(8, 4, p=2)), torch.randn(2, 8))
    calibration = Calibration({net.signature.inputs[0].name: samples.astype("float32")})
    with pytest.raises(InputError):
        calibration.quantized(net)


def test_a_model_of_several_samples_is_refused_with_what_to_do():
    x = torch.randn(2, 8)
    program = torch.export.export(freeze(TiledLinear(8, 4, p=2)), (x,))
    with pytest.raises(UsageError, match="export it with a batch of 1"):
        net = import_model(program, name="net")
        calibrated(net, x).quantized(net)


@pytest.mark.emulator
@pytest.mark.parametrize("board", ["mps2-an386", "mps2-an385", "microbit"])
def test_boards_compute_what_numpy_defines(board, example, tmp_path):
    digits = np.load(example / "digits.npz")
    net = import_model(example / "mnist_mlp.pt2", name="mlp")
    calibration = Calibration({"x": digits["x"][:50]})
    expected = calibration.quantized(net).run(digits["x"][:4])[0]
    project = tbn_tvm.compile(net, board, calibration=calibration)
    with tbn_tvm.micro.Session(project.save(tmp_path / "project")) as session:
        np.testing.assert_array_equal(session.run(digits["x"][:4]), expected)
