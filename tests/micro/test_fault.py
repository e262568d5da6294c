"""What goes wrong on a device, and what the host says of it."""

import importlib
import struct

import numpy as np
import pytest
import torch

import tbn_tvm
from tbn_tvm.errors import DeviceError
from tbn_tvm.micro import Session, stack
from tbn_tvm.micro.fault import REGISTERS, Cause, FaultReport
from tbn_tvm.targets import load_board


def payload(cause: int, calls=(), where=b"", what=b"", **registers: int) -> bytes:
    words = [registers.get(name, 0) for name in REGISTERS]
    words += [*calls, *[0] * (4 - len(calls))]
    return struct.pack("<B17I", cause, *words) + where + b"\0" + what + b"\0"


# -- reports ---------------------------------------------------------------------------------


def test_a_report_comes_back():
    report = FaultReport.parse(payload(4, (5, 7), b"a.c:3", b"x > 0", pc=0x100, bfar=9))
    assert report.cause == Cause.ASSERTION and report.calls == (5, 7)
    assert report.registers == {**dict.fromkeys(REGISTERS, 0), "pc": 0x100, "bfar": 9}
    assert "assertion on the device: x > 0 does not hold at a.c:3" in report.describe()


@pytest.mark.parametrize(
    ("cfsr", "told"),
    [
        (1 << 16, "undefined instruction"),
        (1 << 24, "unaligned access"),
        (1 << 25, "division by zero"),
        (1 << 9 | 1 << 15, "access to where there is no memory at address 0x40000000"),
        (1 << 1 | 1 << 7, "access that the memory protection forbids at address 0x20000000"),
        (0, "no reason given"),
    ],
)
def test_status_registers_are_told_in_words(cfsr, told):
    data = payload(1, pc=0x100, cfsr=cfsr, mmfar=0x20000000, bfar=0x40000000)
    lines = FaultReport.parse(data).describe().splitlines()
    assert lines[0].startswith(f"the device faulted at 0x00000100: {told}")
    assert "pc 0x00000100" in "".join(lines[1:])


# -- boards ----------------------------------------------------------------------------------

BOARDS = ("mps2-an386", "microbit", "mps2-an505")
MAINLINE = ("mps2-an386", "mps2-an505")

UNALIGNED = """
  static uint8_t bytes[8];
  {}
  __asm volatile("ldr r3, [%0]" : : "l"(bytes + 1) : "r3", "memory");
"""
TRAP = "*(volatile uint32_t *)0xE000ED14u |= 8u;  /* CCR.UNALIGN_TRP */"
OVERFLOW = """
  __asm volatile("1: push {r0-r7}\\nb 1b");
"""
LEAK = """
  extern uint32_t __stack_limit;
  __stack_limit = 0u;  /* as a deep call would */
"""


class Shift(torch.nn.Module):
    """As little work as there can be."""

    def forward(self, x):
        return x + 1


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Makes a project with code at the begin of the model's run."""
    program = torch.export.export(Shift(), (torch.zeros(1, 4),))

    def make(board: str, code: str, includes: str = ""):
        project = tbn_tvm.compile(program, board, name="net")
        text = project.files["net.c"].decode()
        start = "void net_run(void)\n{\n"
        assert text.count(start) == 1
        text = text.replace(start, f"{includes}{start}{code}")
        project.files["net.c"] = text.encode()
        return project.save(tmp_path_factory.mktemp("fault") / "net")

    return make


def told(folder, **options) -> str:
    """What the host says of a run that goes wrong."""
    with (
        Session(folder, run_timeout=30, **options) as session,
        pytest.raises(DeviceError) as caught,
    ):
        session.run(np.zeros((1, 4), "float32"))
    with pytest.raises(DeviceError, match="closed"):
        session.run(np.zeros((1, 4), "float32"))
    return str(caught.value)


FAULTS = [
    *((board, '  __asm volatile("udf #0");\n', "undefined instruction") for board in MAINLINE),
    ("microbit", '  __asm volatile("udf #0");\n', "no reason given"),
    *((board, UNALIGNED.format(TRAP), "unaligned access") for board in MAINLINE),
    ("microbit", UNALIGNED.format(""), "no reason given"),
    (
        "mps2-an386",
        "  volatile int32_t zero = 0;\n  zero = 100 / zero;\n",
        "division by zero",
    ),
    (
        "mps2-an386",
        "  *(volatile uint32_t *)0x90000000u = 1u;\n",
        "access to where there is no memory at address 0x90000000",
    ),
]


@pytest.mark.emulator
@pytest.mark.parametrize(("board", "code", "reason"), FAULTS)
def test_a_fault_is_told_with_reason_function_line_and_registers(board, code, reason, project):
    message = told(project(board, code))
    head, *lines = message.splitlines()
    assert head.startswith("the device faulted at 0x") and "in net_run+" in head, message
    assert "net.c:" in head and reason in head, message
    assert all(f"{name} 0x" in "".join(lines) for name in REGISTERS), message
    assert any("called at" in line and "main" in line for line in lines), message


@pytest.mark.emulator
@pytest.mark.parametrize("board", BOARDS)
def test_a_model_without_end_is_ended_by_the_watch_dog(board, project):
    folder = project(board, "  for (volatile uint32_t i = 1u; i != 0u; i = 1u) {}\n")
    message = told(folder, most_instructions=30_000_000)
    assert "watch-dog on the device: the model ran longer than 30,000,000 instr" in message
    assert "in net_run+" in message.splitlines()[0], message


@pytest.mark.emulator
def test_the_watch_dog_lets_a_run_of_less_than_its_limit_end(project):
    folder = project("mps2-an386", "  for (volatile uint32_t i = 0u; i < 5000000u; ++i) {}\n")
    with Session(folder, most_instructions=60_000_000) as session:
        for _ in range(2):
            session.run(np.zeros((1, 4), "float32"))
    assert 20_000_000 < session.statistics.instructions[0] < 60_000_000


@pytest.mark.emulator
@pytest.mark.parametrize("board", BOARDS)
def test_an_assertion_is_told_with_file_and_line(board, project):
    folder = project(board, "  tbn_assert(1 + 1 == 3);\n", '#include "tbn_fault.h"\n')
    message = told(folder)
    assert "assertion on the device: 1 + 1 == 3 does not hold at net.c:" in message
    assert "in net_run+" in message.splitlines()[0], message


@pytest.mark.emulator
@pytest.mark.parametrize("board", BOARDS)
def test_a_stack_that_grows_over_its_end_is_told(board, project, monkeypatch):
    # Such a firmware is not built otherwise.
    bounds = stack.StackReport(0, 0, 0, (), ())
    module = importlib.import_module("tbn_tvm.micro.build")
    monkeypatch.setattr(module, "stack_report", lambda *_args: bounds)
    message = told(project(board, OVERFLOW))
    assert "stack overflow" in message, message
    assert f"(now {load_board(board).stack_bytes:,} bytes)" in message


@pytest.mark.emulator
def test_an_overflow_that_no_core_noticed_is_told_after_the_run(project):
    message = told(project("microbit", LEAK))
    assert message.startswith("stack overflow on the device"), message
