"""The device's server, built for this machine and driven through pipes."""

import os
import random
import select
import shutil
import struct
import subprocess
import time
import zlib
from pathlib import Path

import pytest

import tbn_tvm.micro
from tbn_tvm.errors import DeviceError
from tbn_tvm.micro import protocol
from tbn_tvm.micro.protocol import CRC, Kind, Link
from tbn_tvm.micro.transport import NoisyTransport

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

DEVICE = Path(tbn_tvm.micro.__file__).parent / "device"
SIZE = 600
BOARD = f"""
#define _POSIX_C_SOURCE 200809L
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include "tbn_board.h"
#include "tbn_fault.h"
#include "tbn_model.h"

static uint8_t input[{SIZE}], output[{SIZE}], runs;
const uint8_t tbn_model_digest[8] = {{'d', 'i', 'g', 'e', 's', 't', '!', '!'}};

void tbn_uart_init(void) {{}}
int tbn_uart_offer(uint8_t byte)
{{
  putchar(byte);
  return 1;
}}
int32_t tbn_uart_poll(void)
{{
  uint8_t byte;
  struct pollfd line = {{STDIN_FILENO, POLLIN, 0}};
  fflush(stdout);
  if (poll(&line, 1u, 1) == 0) return -1;
  if (read(STDIN_FILENO, &byte, 1u) != 1) exit(0);
  return byte;
}}
void tbn_timer_start(void) {{}}
void tbn_timer_limit(uint64_t ticks) {{ (void)ticks; }}
void tbn_stack_check(void) {{}}
uint8_t tbn_fault_collect(const uint32_t *frame, uint32_t exc_return, uint32_t *words)
{{
  (void)frame;
  (void)exc_return;
  (void)words;
  return 1u;
}}
uint32_t tbn_stack_used(void) {{ return 0x12345678u; }}
/* Microseconds, and more than 32 bits of them a run. */
uint64_t tbn_timer_ticks(void)
{{
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return ((uint64_t)runs << 33) + (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}}
uint32_t tbn_model_inputs(void) {{ return 1u; }}
uint32_t tbn_model_outputs(void) {{ return 1u; }}
uint8_t *tbn_model_input(uint32_t index, uint32_t *size)
{{
  *size = {SIZE}u;
  return index ? NULL : input;
}}
const uint8_t *tbn_model_output(uint32_t index, uint32_t *size)
{{
  *size = {SIZE}u;
  return index ? NULL : output;
}}
/* Adds one, and tells in the first byte how often it ran. */
void tbn_model_run(void)
{{
  for (int i = 0; i < {SIZE}; ++i) output[i] = (uint8_t)(input[i] + 1u);
  output[0] = ++runs;
}}
"""


def data(seed: int) -> bytes:
    return random.Random(seed).randbytes(SIZE)


class Server:
    """A transport to the server's process."""

    def __init__(self, program: Path) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen([program], bufsize=0, **pipes)

    def write(self, data: bytes) -> None:
        self._process.stdin.write(data)

    def read(self, timeout: float) -> bytes:
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        return os.read(self._process.stdout.fileno(), 4096) if ready else b""

    def diagnosis(self) -> str:
        return ""

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The server's executable."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "board.c").write_text(BOARD)
    sources = [DEVICE / "tbn_server.c", DEVICE / "tbn_crc32.c", folder / "board.c"]
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", f"-I{DEVICE}", "-DTBN_TIMER_HZ=1000000u"]
    subprocess.run(["cc", *flags, *sources, "-o", folder / "server"], check=True)
    return folder / "server"


@pytest.fixture
def link(program):
    server = Server(program)
    yield Link(server, timeout=10)
    server.close()


def infer(link: Link, given: bytes) -> tuple[int, bytes]:
    """How often the model has run, and its output behind that figure."""
    protocol.write_input(link, 0, given)
    _, (crc,) = protocol.run(link, [given], 1, link.timeout)
    output = protocol.read_output(link, 0, SIZE, crc)
    return output[0], output[1:]


def expected(given: bytes) -> bytes:
    return bytes((byte + 1) % 256 for byte in given[1:])


def test_the_server_introduces_itself(link):
    assert protocol.greet(link) == protocol.Greeting(b"digest!!", (SIZE,), (SIZE,))


def test_the_device_computes_the_crc_that_zlib_does(link):
    for seed in range(3):
        protocol.write_input(link, 0, data(seed))
        protocol.run(link, [data(seed)], 1, link.timeout)  # else DamagedInput
    with pytest.raises(protocol.DamagedInput):
        protocol.run(link, [data(7)], 1, link.timeout)


def test_inferences_give_each_inputs_own_output(link):
    for count in range(1, 5):
        assert infer(link, data(count)) == (count, expected(data(count)))
    assert link.retries == 0


def test_ticks_are_64_bits(link):
    protocol.write_input(link, 0, data(0))
    assert 0 <= protocol.run(link, [data(0)], 1, link.timeout)[0] - (1 << 33) < 10_000_000


def test_the_device_tells_how_much_stack_it_used(link):
    assert protocol.stack_used(link) == 0x12345678


def test_a_repeated_run_is_answered_from_memory(link):
    protocol.write_input(link, 0, data(1))
    first = protocol.run(link, [data(1)], 1, link.timeout)
    link._sequence -= 1  # as after a reply that was lost
    assert protocol.run(link, [data(1)], 1, link.timeout) == first
    assert protocol.read_output(link, 0, SIZE, first[1][0])[0] == 1


def test_runs_that_happen_to_share_a_sequence_number_are_different_runs(link):
    for count in range(1, 4):
        link._sequence = 0  # as where an inference takes 256 requests
        assert infer(link, data(count)) == (count, expected(data(count)))


@pytest.mark.parametrize(
    ("kind", "payload", "told"),
    [
        (Kind.WRITE, struct.pack("<BI", 1, 0) + b"x", "address outside the buffer"),
        (Kind.WRITE, struct.pack("<BI", 0, SIZE) + b"x", "address outside the buffer"),
        (Kind.WRITE, struct.pack("<BI", 0, 2**32 - 1) + b"xy", "address outside the buffer"),
        (Kind.WRITE, b"\0\0", "address outside the buffer"),
        (Kind.READ, struct.pack("<BIB", 1, 0, 1), "address outside the buffer"),
        (Kind.READ, struct.pack("<BIB", 0, SIZE - 3, 4), "address outside the buffer"),
        (Kind.READ, struct.pack("<BIB", 0, 2**32 - 1, 2), "address outside the buffer"),
        (Kind.READ, b"", "address outside the buffer"),
        (Kind.RUN, b"", "malformed request"),
        (Kind.RUN, CRC.pack(0) * 2, "malformed request"),
        (Kind.RUN, struct.pack("<IHI", 0, 1, zlib.crc32(bytes(SIZE))), "malformed request"),
        (Kind.TIMES, b"\0\0\0", "malformed request"),
        (Kind.FAULT, b"", "malformed request"),
    ],
)
def test_a_wrong_request_is_refused_and_the_next_one_served(link, kind, payload, told):
    with pytest.raises(DeviceError, match=f"refused {kind.name}: {told}"):
        link.request(kind, payload)
    assert infer(link, data(5)) == (1, expected(data(5)))


@pytest.mark.parametrize("offset", [SIZE, SIZE - 1, 2**31])
def test_a_piece_that_leaves_its_input_changes_nothing(link, offset):
    protocol.write_input(link, 0, data(6))
    with pytest.raises(DeviceError):
        link.request(Kind.WRITE, struct.pack("<BI", 0, offset) + b"xy")
    protocol.run(link, [data(6)], 1, link.timeout)  # else DamagedInput


def test_the_last_bytes_of_a_buffer_are_within_it(link):
    link.request(Kind.WRITE, struct.pack("<BI", 0, SIZE - 1) + b"\xaa")
    given = bytes(SIZE - 1) + b"\xaa"
    _, (crc,) = protocol.run(link, [given], 1, link.timeout)
    assert link.request(Kind.READ, struct.pack("<BIB", 0, SIZE - 1, 1)) == b"\xab"
    assert zlib.crc32(protocol.read_output(link, 0, SIZE, crc)) == crc


def test_a_half_frame_holds_no_later_one_up(link):
    link.transport.write(protocol.encode(protocol.Frame(Kind.WRITE, 1, bytes(255)))[:40])
    time.sleep(0.2)  # twice as long as the device waits for the rest
    assert protocol.greet(link).digest == b"digest!!"
    assert link.retries <= 1  # the device's word of the half frame may be taken for this one's


def test_the_device_tells_of_damage_at_once(link):
    line, frame = link.transport, bytearray(protocol.encode(protocol.Frame(Kind.STACK, 9, b"12")))
    decoder = protocol.Decoder()
    for offset in range(1, len(frame)):
        damaged = bytes(frame[:offset]) + bytes([frame[offset] ^ 0x10]) + bytes(frame[offset + 1 :])
        line.write(damaged)
        (told,) = decoder.feed(line.read(10))
        assert (told.kind, told.payload) == (Kind.ERROR, b"\4"), offset


def test_a_frame_behind_one_that_lost_a_byte_is_found(link):
    line, whole = link.transport, protocol.encode(protocol.Frame(Kind.STACK, 9, b""))
    for offset in range(len(whole)):
        line.write(whole[:offset] + whole[offset + 1 :] + whole)
        decoder, found = protocol.Decoder(), []
        while not any(frame.kind == Kind.STACK | protocol.REPLY for frame in found):
            arrived = line.read(10)
            assert arrived, offset
            found += decoder.feed(arrived)


@pytest.mark.parametrize(("damage", "inferences"), [(0.01, 100), (0.05, 2)])
def test_a_line_that_loses_doubles_and_changes_bytes_gives_the_right_outputs(
    program, damage, inferences
):
    link = Link(NoisyTransport(Server(program), damage, seed=0))
    try:
        for seed in range(inferences):
            assert infer(link, data(seed)) == ((seed + 1) % 256, expected(data(seed)))
    finally:
        link.transport.close()
    assert link.retries > inferences
