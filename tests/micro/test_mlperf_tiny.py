"""Firmware that speaks MLPerf Tiny's commands, and firmware that speaks with nobody."""

import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import tbn_tvm
from tbn_tvm.cli.main import main
from tbn_tvm.compiler import import_model
from tbn_tvm.micro import Project, Session, build
from tbn_tvm.micro.build import PROTOCOLS
from tbn_tvm.micro.quantization import Calibration
from tbn_tvm.micro.transport import EmulatedBoard, Transport
from tbn_tvm.nn import TiledConv2d, TiledLinear, freeze

pytestmark = pytest.mark.emulator

READY = b"m-ready\r\n"
PIECE = 31
"""Bytes a db command carries, as mlcommons/tiny's runner sends them."""


class Client:
    """The host's end, as MLPerf Tiny's runner has it: a command, then lines up to m-ready."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.banner = self._lines()

    def ask(self, command: str) -> list[str]:
        """The lines that answer a command."""
        self.transport.write(f"{command}%".encode())
        return self._lines()

    def load(self, data: bytes) -> list[str]:
        """Fill the device's buffer; the last reply."""
        assert self.ask(f"db load {len(data)}") == [f"m-[Expecting {len(data)} bytes]"]
        lines = []
        for at in range(0, len(data), PIECE):
            assert lines == []
            lines = self.ask(f"db {data[at : at + PIECE].hex()}")
        return lines

    def infer(self, count: int, warmups: int) -> tuple[np.ndarray, float]:
        """Results, and microseconds of one inference."""
        lines = self.ask(f"infer {count} {warmups}")
        *frame, results = lines
        told = [line for line in frame if not line.startswith("m-lap-us-")]
        assert told == [
            f"m-warmup-start-{warmups}",
            "m-warmup-done",
            f"m-infer-start-{count}",
            "m-infer-done",
        ]
        laps = [int(line.removeprefix("m-lap-us-")) for line in frame if line not in told]
        assert lines.index(f"m-lap-us-{laps[0]}") == 3
        assert len(laps) == 2
        return self.parsed(results), (laps[1] - laps[0]) / count

    def parsed(self, line: str) -> np.ndarray:
        values = re.fullmatch(r"m-results-\[(-?\d+\.\d{3}(?:,-?\d+\.\d{3})*)\]", line)
        assert values, line
        return np.array(values[1].split(","), float)

    def _lines(self) -> list[str]:
        received, deadline = b"", time.monotonic() + 30
        while not received.endswith(READY):
            assert time.monotonic() < deadline, received
            received += self.transport.read(1.0)
        return received.removesuffix(READY).decode().splitlines()


def dense() -> torch.nn.Module:
    return torch.nn.Sequential(TiledLinear(24, 16, p=4), torch.nn.ReLU(), TiledLinear(16, 5, p=2))


def conv() -> torch.nn.Module:
    return torch.nn.Sequential(
        TiledConv2d(1, 8, 3, padding=1, p=4),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        TiledLinear(8 * 4 * 4, 10, p=2),
    )


CASES = {
    "conv-float32-M4": (conv, (1, 8, 8), False, "mps2-an386"),
    "dense-int8-M0": (dense, (24,), True, "microbit"),
}


class Case:
    """A project, an input as the device takes it, and what the host makes of it."""

    def __init__(self, name: str, folder: Path) -> None:
        make, shape, integers, board = CASES[name]
        torch.manual_seed(0)
        x = torch.randn(30, *shape)
        model = import_model(torch.export.export(freeze(make()), (x[:1],)), name="net")
        calibration = Calibration({model.signature.inputs[0].name: x.numpy()})
        self.folder = folder
        self.x = x[:1].numpy()
        calibration = calibration if integers else None
        project = tbn_tvm.compile(model, board, calibration=calibration)
        project.save(folder)
        if integers:
            self.data = project.quantization.inputs[0].quantize(self.x).tobytes()
            self.expected = calibration.quantized(model).run(self.x)[0].reshape(-1)
        else:
            self.data = self.x.tobytes()
            self.expected = tbn_tvm.compile(model, "llvm").run(self.x).reshape(-1)


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp("mlperf") / "net")


@pytest.fixture(scope="module")
def client(case):
    report = build(case.folder, "mlperf-tiny")
    assert report.elf.endswith("firmware-mlperf-tiny.elf")
    board = EmulatedBoard(Project.load(case.folder).board, Path(report.elf))
    yield Client(board)
    board.close()


def test_the_device_says_when_it_is_ready_and_what_it_is(case, client):
    assert client.banner[0] == "m-timestamp-mode-performance"
    assert re.fullmatch(r"m-lap-us-\d+", client.banner[1])
    assert client.banner[2:] == ["m-init-done"]
    assert client.ask("name") == [f"m-name-dut-[{Project.load(case.folder).board.name}]"]
    assert client.ask("profile") == [
        "m-profile-[ULPMark for tinyML Firmware V0.0.1]",
        "m-model-[net]",
    ]
    told = "\n".join(client.ask("help"))
    for command in ("name", "profile", "timestamp", "db load", "db print", "infer", "results"):
        assert command in told


def test_results_are_the_hosts(case, client):
    assert client.load(case.data) == ["m-load-done"]
    y, _ = client.infer(1, 0)
    # Three decimals are sent.
    np.testing.assert_allclose(y, case.expected, rtol=1e-5, atol=5.2e-4)
    # A run overwrites its inputs; the buffer is what the next one begins with.
    again, _ = client.infer(3, 2)
    np.testing.assert_array_equal(again, y)
    np.testing.assert_array_equal(client.parsed(*client.ask("results")), y)


def test_the_buffer_is_shown_in_lines_of_eight(case, client):
    client.load(case.data[:19])
    shown = client.ask("db print")
    assert [line.count("-") for line in shown] == [9, 9, 4]
    digits = "".join(line.removeprefix("m-buffer-").replace("-", "") for line in shown)
    assert bytes.fromhex(digits) == case.data[:19]
    # Half of it, with upper-case digits, and more digits than were announced.
    assert client.ask("db load 2") == ["m-[Expecting 2 bytes]"]
    assert client.ask("db A1") == []
    assert client.ask("db print") == ["m-buffer-a1"]
    assert client.ask("db B2C3") == ["m-load-done"]
    assert client.ask("db print") == ["m-buffer-a1-b2"]


def test_time_goes_on(client):
    first, second = (
        int(line.removeprefix("m-lap-us-")) for _ in range(2) for line in client.ask("timestamp")
    )
    assert first < second


BAD = [
    ("", "e-[Unknown command: ]"),
    ("nonsense 1 2", "e-[Unknown command: nonsense]"),
    ("db", "e-[Command 'db' requires a subcommand]"),
    ("db load", "e-[Command 'db load' requires the # of bytes]"),
    ("db load 0", "e-[Command 'db load' must be >0 bytes]"),
    ("db load -4", "e-[Command 'db load' must be >0 bytes]"),
    ("db load 99999999", "e-[Supplied buffer size 99999999 exceeds maximum of {bytes}]"),
    ("db load 99999999999999", "e-[Command 'db load' must be >0 bytes]"),
    ("db 012", "e-[Insufficient number of hex digits]"),
    ("db 0g", "e-[Invalid hex digit 'g']"),
    ("db 00", "e-[No bytes expected: 'db load N' first]"),
    ("infer 0", "e-[Inference iterations must be >0]"),
    ("infer x", "e-[Inference iterations must be >0]"),
    ("infer 1 -1", "e-[Inference warmup must be >=0]"),
    ("db " + 400 * "0", "e-[Command too long]"),
]


@pytest.mark.parametrize(("command", "told"), BAD, ids=[b[0][:20] for b in BAD])
def test_what_is_no_command_is_told(case, client, command, told):
    assert client.ask(command) == [told.format(bytes=len(case.data))]
    assert client.ask("  name  ")[0].startswith("m-name-dut-")


def test_the_time_told_is_that_of_the_session(tmp_path):
    """Emulated cores take a nanosecond an instruction."""
    case = Case("conv-float32-M4", tmp_path / "net")
    with Session(case.folder) as session:
        session.run(case.x)
    (instructions,) = session.statistics.instructions
    report = build(case.folder, "mlperf-tiny")
    board = EmulatedBoard(session.project.board, Path(report.elf))
    try:
        client = Client(board)
        client.load(case.data)
        _, microseconds = client.infer(1000, 0)
    finally:
        board.close()
    # And the copy of the inputs, and the loop.
    assert instructions < microseconds * 1000 < 1.2 * instructions + 200


# -- no protocol -----------------------------------------------------------------------------

HOOKS = """
#include "net.h"
#include "tbn_board.h"

void tbn_before_run(void);
void tbn_after_run(void);

void tbn_before_run(void)
{
  float *x = net_input_input();
  for (unsigned i = 0; i < NET_INPUT_INPUT_COUNT; ++i) x[i] = (float)i / 8.0f - 1.0f;
}

void tbn_after_run(void)
{
  tbn_uart_init();
  const uint8_t *bytes = (const uint8_t *)net_output_output();
  for (unsigned i = 0; i < 4u * NET_OUTPUT_OUTPUT_COUNT; ++i) tbn_uart_write(bytes[i]);
}
"""


@pytest.mark.parametrize("board", ["microbit", "mps2-an386"])
def test_firmware_without_a_protocol_runs_the_model_between_two_hooks(tmp_path, board):
    torch.manual_seed(0)
    model = import_model(torch.export.export(freeze(dense()), (torch.zeros(1, 24),)), name="net")
    assert model.signature.inputs[0].name == "input"
    project = tbn_tvm.compile(model, board)
    project.save(tmp_path / "net")
    hooks = tmp_path / "hooks.c"
    hooks.write_text(HOOKS)
    report = build(tmp_path / "net", "none", [hooks])
    transport = EmulatedBoard(project.board, Path(report.elf))
    try:
        received, deadline = b"", time.monotonic() + 30
        while len(received) < 20 and time.monotonic() < deadline:
            received += transport.read(1.0)
    finally:
        transport.close()
    x = (np.arange(24, dtype=np.float32) / 8 - 1)[None]
    expected = tbn_tvm.compile(model, "llvm").run(x)[0]
    np.testing.assert_allclose(np.frombuffer(received, np.float32), expected, atol=1e-5)


def test_the_shipped_models_bare_firmware_is_small(example, tmp_path):
    project = tbn_tvm.compile(example / "mnist_mlp.pt2", "mps2-an386")
    project.save(tmp_path / "mnist")
    sizes = {protocol: build(tmp_path / "mnist", protocol) for protocol in PROTOCOLS}
    bare = sizes["none"]
    (given,) = project.signature.inputs
    assert bare.flash <= 6 * 1024
    assert bare.ram + bare.stack.with_fault - given.nbytes <= 1024
    assert bare.flash < sizes["tbn"].flash
    # Each has a file of its own, so that none is taken for another.
    assert len({report.elf for report in sizes.values()}) == len(PROTOCOLS)
    assert all(Path(report.elf).exists() for report in sizes.values())


# -- the command line ------------------------------------------------------------------------


def test_the_command_builds_what_is_asked_for_and_refuses_what_is_not_there(tmp_path, capfd):
    torch.manual_seed(0)
    model = import_model(torch.export.export(freeze(dense()), (torch.zeros(1, 24),)), name="net")
    folder = str(tbn_tvm.compile(model, "mps2-an386").save(tmp_path / "net"))
    assert main(["micro", "build", folder, "--protocol", "mlperf-tiny", "--json"]) == 0
    assert "firmware-mlperf-tiny.elf" in capfd.readouterr().out
    assert main(["micro", "build", folder, "--protocol", "none", "--source", "gone.c"]) == 2
    err = capfd.readouterr().err
    assert "gone.c: no such file" in err and "Traceback" not in err
    bad = tmp_path / "bad.c"
    bad.write_text("this is no C\n")
    assert main(["micro", "build", folder, "--protocol", "none", "--source", str(bad)]) == 1
    assert "arm-none-eabi-gcc failed" in capfd.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["micro", "build", folder, "--protocol", "morse"])
    assert ended.value.code == 2
