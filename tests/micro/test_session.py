"""Firmware in the emulator: built with the real compiler, driven over the real protocol."""

import json
import signal
import subprocess

import numpy as np
import pytest
import torch

import tbn_tvm
from tbn_tvm.errors import DeviceError, InputError
from tbn_tvm.micro import Session, build, protocol
from tbn_tvm.micro.transport import EmulatedBoard, NoisyTransport
from tbn_tvm.nn import TiledConv2d, TiledLinear, freeze
from tbn_tvm.targets import load_board

pytestmark = pytest.mark.emulator

TICK = load_board("mps2-an386").instructions_per_tick
"""Instructions between two steps of the device's timer."""


class ConvNet(torch.nn.Module):
    """Two tiled convolutions, pooling and a tiled linear layer."""

    def __init__(self):
        super().__init__()
        self.conv1 = TiledConv2d(1, 8, 3, padding=1, p=4)
        self.norm = torch.nn.BatchNorm2d(8)
        self.conv2 = TiledConv2d(8, 16, 3, p=4)
        self.fc = TiledLinear(16 * 2 * 2, 10, p=2)

    def forward(self, x):
        x = torch.nn.functional.max_pool2d(torch.relu(self.norm(self.conv1(x))), 2)
        x = torch.nn.functional.avg_pool2d(torch.relu(self.conv2(x)), 2)
        return self.fc(x.flatten(1))


@pytest.fixture(scope="module")
def program():
    """The conv net, trained by nobody, exported with a free batch."""
    torch.manual_seed(0)
    net = ConvNet()
    net.norm.running_mean.uniform_(-1, 1)
    net.norm.running_var.uniform_(0.5, 2)
    return torch.export.export(
        freeze(net),
        (torch.randn(2, 1, 12, 12),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
    )


@pytest.fixture(scope="module")
def project(program, tmp_path_factory):
    """The conv net's project folder."""
    folder = tmp_path_factory.mktemp("micro") / "conv_net"
    tbn_tvm.compile(program, "mps2-an386", name="conv_net").save(folder)
    return folder


@pytest.fixture(scope="module")
def images():
    """Inputs of the conv net."""
    return np.random.default_rng(0).normal(size=(3, 1, 12, 12)).astype("float32")


def test_a_conv_net_gives_the_same_on_pytorch_host_and_device(program, project, images):
    expected = program.module()(torch.from_numpy(images)).detach().numpy()
    host = tbn_tvm.compile(program, "llvm").run(images)
    with Session(project) as session:
        device = session.run(images)
        again = session.run(x=images[:1])
    np.testing.assert_allclose(host, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(device, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(again, device[:1])


def test_instruction_counts_repeat_to_a_tick_and_sizes_come_from_the_elf(project, images):
    counts = []
    for _ in range(2):
        with Session(project) as session:
            session.run(images[:1])
            counts.append(session.statistics.instructions)
    assert abs(counts[0][0] - counts[1][0]) <= TICK
    assert counts[0][0] > 100 * TICK
    report = session.build_report
    listed = subprocess.run(
        ["arm-none-eabi-size", "-A", report.elf], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split() for line in listed.splitlines() if line.startswith(".")]
    sizes = {name: int(size) for name, size, _address in rows}
    assert report.ram == sizes[".bss"] + sizes.get(".data", 0)
    assert report.flash == sizes[".text"] + sizes.get(".data", 0) + sizes.get(".ARM.exidx", 0)
    planned = json.loads((project / "metadata.json").read_text())["memory"]
    assert report.arena == (planned["arena"] + 7) // 8 * 8


def test_a_session_takes_what_an_artifact_takes(project):
    with Session(project) as session:
        with pytest.raises(InputError, match="expected float32"):
            session.run(np.zeros((1, 1, 12, 12)))
        with pytest.raises(InputError, match="shape"):
            session.run(np.zeros((1, 1, 12, 11), "float32"))
    with pytest.raises(DeviceError, match="closed"):
        session.run(np.zeros((1, 1, 12, 12), "float32"))


class Small(torch.nn.Module):
    """A tiled layer, as quick as a model can be."""

    def __init__(self):
        super().__init__()
        self.fc = TiledLinear(8, 3, p=1)

    def forward(self, x):
        return self.fc(x)


@pytest.mark.parametrize(("rate", "inferences"), [(0.01, 1000), (0.05, 2)])
def test_a_noisy_line_costs_retries_and_never_a_wrong_result(rate, inferences, tmp_path):
    torch.manual_seed(0)
    program = torch.export.export(
        freeze(Small()),
        (torch.randn(2, 8),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
    )
    folder = tbn_tvm.compile(program, "mps2-an386", name="small").save(tmp_path / "small")
    x = np.random.default_rng(0).normal(size=(inferences, 8)).astype("float32")
    with Session(folder) as session:
        expected = session.run(x)
    assert len(np.unique(expected, axis=0)) == inferences
    board, elf = load_board("mps2-an386"), folder / "build" / "firmware.elf"
    line = NoisyTransport(EmulatedBoard(board, elf), rate, seed=0)
    with Session(folder, transport=line) as session:
        np.testing.assert_array_equal(session.run(x), expected)
        assert session.statistics.retries > inferences
    assert line.damaged > inferences


def test_a_device_that_falls_silent_is_an_error_within_the_time_limit(project, images):
    with Session(project, timeout=0.05, run_timeout=0.05) as session:
        session._transport._process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(DeviceError, match="did not answer WRITE within"):
                session.run(images)
        finally:
            session._transport._process.send_signal(signal.SIGCONT)


def test_an_emulator_that_dies_is_an_error(project, images):
    with Session(project) as session:
        session._transport._process.kill()
        with pytest.raises(DeviceError, match="emulator ended"):
            session.run(images)


def test_a_fault_on_the_device_is_reported_with_its_function(project, images, tmp_path):
    copy = tmp_path / "faulty"
    source = tbn_tvm.micro.Project.load(project)
    name = "conv_net.c"
    # An undefined instruction where the model's run begins.
    broken = source.files[name].replace(
        b"void conv_net_run(void)\n{\n",
        b'void conv_net_run(void)\n{\n  __asm volatile("udf #0");\n',
    )
    assert broken != source.files[name]
    source.files[name] = broken
    source.save(copy)
    with Session(copy) as session, pytest.raises(DeviceError, match=r"faulted .*conv_net_run"):
        session.run(images[:1])


def test_another_models_firmware_is_not_talked_to(project, tmp_path):
    class Other(torch.nn.Module):
        def forward(self, x):
            return x + 1

    other = tmp_path / "other"
    tbn_tvm.compile(
        torch.export.export(Other(), (torch.zeros(1, 4),)), "mps2-an386", name="other"
    ).save(other)
    elf = build(other).elf
    board = EmulatedBoard(load_board("mps2-an386"), elf)
    with pytest.raises(DeviceError, match="flash it again"), Session(project, transport=board):
        pass


def test_a_request_outside_a_buffer_is_refused(project):
    with Session(project) as session:
        link = session._link
        with pytest.raises(DeviceError, match="address outside"):
            link.request(protocol.Kind.WRITE, b"\x00\xff\xff\xff\xff data")
        with pytest.raises(DeviceError, match="address outside"):
            link.request(protocol.Kind.READ, b"\x07\x00\x00\x00\x00\x04\x00")
        with pytest.raises(DeviceError, match="malformed"):
            link.request(protocol.Kind.RUN, b"")
        with pytest.raises(protocol.DamagedInput):
            link.request(protocol.Kind.RUN, bytes(4) + b"\xff\xff" + bytes(4))


def test_a_float_model_whose_weights_happen_to_be_tiled_compiles_to_the_same_code(tmp_path):
    """The layers are PyTorch's own: only the values are tiled."""
    torch.manual_seed(0)
    tiled = torch.nn.Sequential(
        TiledLinear(96, 48, p=4), torch.nn.ReLU(), TiledLinear(48, 10, p=1, bias=False)
    )
    plain = torch.nn.Sequential(
        torch.nn.Linear(96, 48), torch.nn.ReLU(), torch.nn.Linear(48, 10, bias=False)
    )
    with torch.no_grad():
        for ours, theirs in zip(tiled, plain, strict=True):
            if isinstance(ours, TiledLinear):
                theirs.weight.copy_(torch.from_numpy(ours.tiled_tensor().expand()))
                if ours.bias is not None:
                    theirs.bias.copy_(ours.bias)
    x = torch.randn(1, 96)
    reports, outputs = [], []
    for name, model in (("tiled", freeze(tiled)), ("plain", plain.eval())):
        folder = tmp_path / name
        tbn_tvm.compile(torch.export.export(model, (x,)), "mps2-an386", name="net").save(folder)
        with Session(folder) as session:
            outputs.append(session.run(x.numpy()))
            reports.append((session.build_report, session.statistics.instructions))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    (ours, our_instructions), (theirs, their_instructions) = reports
    assert (ours.flash, ours.weights, ours.arena) == (theirs.flash, theirs.weights, theirs.arena)
    assert abs(our_instructions[0] - their_instructions[0]) <= TICK
