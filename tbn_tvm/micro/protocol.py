"""Frames between host and device, and the host's end of the conversation.

A frame is ``0xA7, kind, sequence, length (2 bytes), payload, CRC-32 (4 bytes)``, integers little
endian, the CRC over everything between the first byte and itself. The host asks, the device
answers with the same sequence number. A frame that is damaged or lost is asked for again: reading
and writing are idempotent, and the device answers a repeated RUN from memory. Inputs and outputs
are checked by a CRC of their own, so a wrong result is never taken for a right one.
``device/tbn_server.c`` is the other end.
"""

from __future__ import annotations

import struct
import time
import zlib
from dataclasses import dataclass
from enum import IntEnum

from tbn_tvm.errors import DeviceError
from tbn_tvm.micro.transport import Transport

MAGIC = 0xA7
HEADER = struct.Struct("<BBBH")
CRC = struct.Struct("<I")
MAX_PAYLOAD = 256
VERSION = 2


class Kind(IntEnum):
    """What a frame asks for; a reply has the high bit set."""

    HELLO = 1
    WRITE = 2
    RUN = 3
    READ = 4
    STACK = 5
    FAULT = 0x7E
    ERROR = 0x7F


REPLY = 0x80
_ERRORS = {1: "malformed request", 2: "address outside the buffer", 3: "input differs from its CRC"}
_BAD_INPUT = 3


@dataclass(frozen=True)
class Frame:
    """A frame's content."""

    kind: int
    sequence: int
    payload: bytes


class DamagedInput(Exception):
    """The device's copy of an input is not what was sent."""


class Fault(DeviceError):
    """The device took a processor fault.

    Attributes
    ----------
    pc, lr, status : int
        Program counter, link register, CFSR.
    """

    def __init__(self, pc: int, lr: int, status: int) -> None:
        super().__init__(
            f"the device faulted at pc 0x{pc:08x}, lr 0x{lr:08x}, status 0x{status:08x}"
        )
        self.pc, self.lr, self.status = pc, lr, status


def encode(frame: Frame) -> bytes:
    """The bytes of a frame."""
    body = HEADER.pack(MAGIC, frame.kind, frame.sequence, len(frame.payload)) + frame.payload
    return body + CRC.pack(zlib.crc32(body[1:]))


class Decoder:
    """Finds frames in a stream of bytes that may be damaged."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes; give the undamaged frames they complete."""
        self._buffer += data
        frames = []
        while (start := self._buffer.find(MAGIC)) >= 0:
            del self._buffer[:start]
            if len(self._buffer) < HEADER.size:
                return frames
            _, kind, sequence, length = HEADER.unpack_from(self._buffer)
            end = HEADER.size + length
            if length <= MAX_PAYLOAD:
                if len(self._buffer) < end + CRC.size:
                    return frames
                (crc,) = CRC.unpack_from(self._buffer, end)
                if crc == zlib.crc32(self._buffer[1:end]):
                    payload = bytes(self._buffer[HEADER.size : end])
                    frames.append(Frame(kind, sequence, payload))
                    del self._buffer[: end + CRC.size]
                    continue
            # Not a frame after all: look for the next start just behind this one.
            del self._buffer[0]
        self._buffer.clear()
        return frames


class Link:
    """The host's end: requests with time-outs and retries.

    Parameters
    ----------
    transport : Transport
        Carries bytes.
    timeout : float
        The interval: seconds to wait for a reply before asking again.
    attempts : int
        How often to ask.
    """

    def __init__(self, transport: Transport, timeout: float = 2.0, attempts: int = 8) -> None:
        self.transport, self.timeout, self.attempts = transport, timeout, attempts
        self.retries = 0
        self._decoder = Decoder()
        self._sequence = 0

    def request(self, kind: Kind, payload: bytes = b"", timeout: float | None = None) -> bytes:
        """Ask, and return the reply's payload.

        Parameters
        ----------
        kind : Kind
            What to ask.
        payload : bytes
            With what.
        timeout : float, optional
            Seconds until the device is given up, by default ``attempts`` intervals; within them
            the request is repeated every interval.

        Raises
        ------
        DeviceError
            Where no reply comes, or the device refuses.
        Fault
            Where the device faulted.
        DamagedInput
            Where the device says that an input arrived damaged.
        """
        self._sequence = (self._sequence + 1) & 0xFF
        frame = encode(Frame(kind, self._sequence, payload))
        limit = self.timeout * self.attempts if timeout is None else timeout
        asked, end = 0, time.monotonic() + limit
        while asked == 0 or time.monotonic() < end:
            if asked:
                self.retries += 1
                # Noise may have looked like the start of a frame, and the reply like its payload.
                self._decoder = Decoder()
                # Completes whatever frame the device may still be waiting for, with garbage.
                self.transport.write(bytes(HEADER.size + MAX_PAYLOAD + CRC.size))
            self.transport.write(frame)
            asked += 1
            reply = self._await(kind, min(time.monotonic() + self.timeout, end))
            if reply is not None:
                return reply
        raise DeviceError(
            f"the device did not answer {kind.name} within {limit:g} s, asked {asked} times"
            f"{self.transport.diagnosis()}"
        )

    def _await(self, kind: Kind, deadline: float) -> bytes | None:
        while (left := deadline - time.monotonic()) > 0:
            for frame in self._decoder.feed(self.transport.read(left)):
                if frame.kind == Kind.FAULT and len(frame.payload) == 12:
                    raise Fault(*struct.unpack("<III", frame.payload))
                if frame.sequence != self._sequence:
                    continue  # a late reply to an earlier request
                if frame.kind == Kind.ERROR:
                    code = frame.payload[0] if frame.payload else 0
                    if code == _BAD_INPUT:
                        raise DamagedInput
                    raise DeviceError(
                        f"the device refused {kind.name}: {_ERRORS.get(code, f'error {code}')}"
                    )
                if frame.kind == kind | REPLY:
                    return frame.payload
        return None


@dataclass(frozen=True)
class Greeting:
    """What the device says of itself: firmware digest and sizes of inputs and outputs."""

    digest: bytes
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def greet(link: Link, timeout: float | None = None) -> Greeting:
    """Ask the device who it is."""
    payload = link.request(Kind.HELLO, timeout=timeout)
    inputs, outputs = payload[9:11] if len(payload) >= 11 else (0, 0)
    if len(payload) != 11 + 4 * (inputs + outputs) or payload[0] != VERSION:
        raise DeviceError(
            f"the firmware speaks protocol {payload[0] if payload else '?'}, this version "
            f"{VERSION}: build it again"
        )
    sizes = struct.unpack_from(f"<{inputs + outputs}I", payload, 11)
    return Greeting(payload[1:9], sizes[:inputs], sizes[inputs:])


def write_input(link: Link, index: int, data: bytes) -> None:
    """Send an input, in pieces."""
    room = MAX_PAYLOAD - 5
    for offset in range(0, len(data), room):
        piece = data[offset : offset + room]
        link.request(Kind.WRITE, struct.pack("<BI", index, offset) + piece)


def run(link: Link, inputs: list[bytes], outputs: int, timeout: float) -> tuple[int, list[int]]:
    """Run one inference on inputs already sent; ticks, and the CRC of each output."""
    crcs = b"".join(CRC.pack(zlib.crc32(data)) for data in inputs)
    payload = link.request(Kind.RUN, crcs, timeout)
    if len(payload) != 8 + 4 * outputs:
        raise DeviceError(
            f"the device answered RUN with {len(payload)} bytes: expected {8 + 4 * outputs}"
        )
    ticks, *digests = struct.unpack(f"<Q{outputs}I", payload)
    return ticks, digests


def read_output(link: Link, index: int, size: int, crc: int) -> bytes:
    """Fetch an output, in pieces, and check it.

    Raises
    ------
    DeviceError
        Where it differs from the CRC that the run reported.
    """
    data = b"".join(
        link.request(Kind.READ, struct.pack("<BIH", index, offset, min(MAX_PAYLOAD, size - offset)))
        for offset in range(0, size, MAX_PAYLOAD)
    )
    if len(data) != size or zlib.crc32(data) != crc:
        raise DeviceError(f"output {index} does not match its CRC: memory changed after the run")
    return data


def stack_used(link: Link) -> int:
    """Bytes of stack that the device has used at most since its reset."""
    payload = link.request(Kind.STACK)
    if len(payload) != 4:
        raise DeviceError(f"the device answered STACK with {len(payload)} bytes: expected 4")
    return int.from_bytes(payload, "little")
