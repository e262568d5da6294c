"""Frames between host and device, and the host's end of the conversation.

A frame is ``0xA7, kind, sequence, length, check, payload, CRC-32 (4 bytes)``, integers little
endian. The check byte is of kind, sequence and length, so that a damaged length is found before
anyone waits for so many bytes; the CRC is of everything between the first byte and itself.

The host asks, the device answers with the same sequence number. A frame that is lost is asked for
again after a time that follows the answers' usual delay, a damaged one at once: the device tells
of it. Reading and writing are idempotent, and the device answers a repeated RUN from memory.
Where frames get lost, they become smaller. Inputs and outputs are checked by a CRC of their own,
so a wrong result is never taken for a right one. ``device/tbn_server.c`` is the other end.
"""

from __future__ import annotations

import math
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from tbn_tvm.errors import DeviceError
from tbn_tvm.micro.fault import FaultReport
from tbn_tvm.micro.transport import Transport

MAGIC = 0xA7
HEADER = struct.Struct("<BBBBB")
CRC = struct.Struct("<I")
MAX_PAYLOAD = 255
VERSION = 3

ALL_STEPS = 0xFFFF

_LEAST_ROOM = 16
_MORE_ROOM = 8
_FIRST_INTERVAL = 0.05
_LEAST_INTERVAL = 0.005
_MORE_PATIENT = 1.5
_MOST_PATIENCE = 8


class Kind(IntEnum):
    """What a frame asks for; a reply has the high bit set."""

    HELLO = 1
    WRITE = 2
    RUN = 3
    READ = 4
    STACK = 5
    TIMES = 6
    RESULT = 7
    FAULT = 0x7E
    ERROR = 0x7F


REPLY = 0x80
_BAD_INPUT, _DAMAGED = 3, 4
_ERRORS = {1: "malformed request", 2: "address outside the buffer", 3: "input differs from its CRC"}


@dataclass(frozen=True)
class Frame:
    """A frame's content."""

    kind: int
    sequence: int
    payload: bytes


class DamagedInput(Exception):
    """The device's copy of an input is not what was sent."""


class Fault(DeviceError):
    """The device says that something happened which should not have.

    Attributes
    ----------
    report : FaultReport
        What it says.
    """

    def __init__(self, report: FaultReport) -> None:
        super().__init__(report.describe())
        self.report = report


def header_check(kind: int, sequence: int, length: int) -> int:
    """The header's last byte; the factors tell bytes that were shifted by one that got lost."""
    return (0x5A + kind + 3 * sequence + 5 * length) & 0xFF


def encode(frame: Frame) -> bytes:
    """The bytes of a frame."""
    fields = frame.kind, frame.sequence, len(frame.payload)
    body = HEADER.pack(MAGIC, *fields, header_check(*fields)) + frame.payload
    return body + CRC.pack(zlib.crc32(body[1:]))


class Decoder:
    """Finds frames in a stream of bytes that may be damaged.

    Attributes
    ----------
    damaged : int
        How often something began like a frame and was none.
    """

    def __init__(self) -> None:
        self.damaged = 0
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Bytes of a frame that is not yet whole."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes; give the undamaged frames they complete."""
        self._buffer += data
        frames = []
        while (start := self._buffer.find(MAGIC)) >= 0:
            del self._buffer[:start]
            if len(self._buffer) < HEADER.size:
                return frames
            _, kind, sequence, length, check = HEADER.unpack_from(self._buffer)
            if check == header_check(kind, sequence, length):
                end = HEADER.size + length
                if len(self._buffer) < end + CRC.size:
                    return frames
                (crc,) = CRC.unpack_from(self._buffer, end)
                if crc == zlib.crc32(self._buffer[1:end]):
                    payload = bytes(self._buffer[HEADER.size : end])
                    frames.append(Frame(kind, sequence, payload))
                    del self._buffer[: end + CRC.size]
                    continue
            # Not a frame after all: look for the next start just behind this one.
            self.damaged += 1
            del self._buffer[0]
        self._buffer.clear()
        return frames

    def give_up(self) -> list[Frame]:
        """Take the frame begun for noise; give the frames that lie in it."""
        if not self._buffer:
            return []
        self.damaged += 1
        del self._buffer[0]
        return self.feed(b"")


class _Delay:
    """How long answers take, from those that came (RFC 6298)."""

    def __init__(self) -> None:
        self._mean: float | None = None
        self._deviation = 0.0

    def learn(self, seconds: float) -> None:
        """One answer's delay."""
        if self._mean is None:
            self._mean, self._deviation = seconds, seconds / 2
            return
        self._deviation += (abs(seconds - self._mean) - self._deviation) / 4
        self._mean += (seconds - self._mean) / 8

    @property
    def interval(self) -> float:
        """When an answer has to be taken for lost."""
        if self._mean is None:
            return _FIRST_INTERVAL
        return max(_LEAST_INTERVAL, self._mean + 4 * self._deviation)

    @property
    def patience(self) -> float:
        """The most to wait for one answer."""
        return math.inf if self._mean is None else _MOST_PATIENCE * self.interval


class Link:
    """The host's end: requests with time-outs and retries.

    Parameters
    ----------
    transport : Transport
        Carries bytes.
    timeout : float
        The longest interval: seconds after which a request is repeated, where nothing is known of
        how long its answer takes, or where it was repeated in vain.
    attempts : int
        After how many such intervals a device is given up.

    Attributes
    ----------
    retries : int
        Requests that were repeated.
    room : int
        Bytes of payload in a frame: fewer where frames get lost.
    """

    def __init__(self, transport: Transport, timeout: float = 2.0, attempts: int = 8) -> None:
        self.transport, self.timeout, self.attempts = transport, timeout, attempts
        self.retries = 0
        self.room = MAX_PAYLOAD
        self._decoder = Decoder()
        self._sequence = self._last_asked = 0
        # A run takes its own time; everything else is of one kind.
        self._run_delay, self._short_delay = _Delay(), _Delay()

    def request(self, kind: Kind, payload: bytes = b"", timeout: float | None = None) -> bytes:
        """Ask, as often as it takes, and return the reply's payload.

        Parameters
        ----------
        kind : Kind
            What to ask.
        payload : bytes
            With what.
        timeout : float, optional
            Seconds until the device is given up, by default ``attempts`` intervals.

        Raises
        ------
        DeviceError
            Where no reply comes, or the device refuses.
        Fault
            Where the device faulted.
        DamagedInput
            Where the device says that an input arrived damaged.
        """
        limit = self.timeout * self.attempts if timeout is None else timeout
        frame, delay = self._frame(kind, payload), self._delay(kind)
        end, asked = time.monotonic() + limit, 0
        interval, most = min(delay.interval, self.timeout), min(delay.patience, self.timeout)
        while asked == 0 or time.monotonic() < end:
            self.retries += asked > 0
            reply = self._ask(frame, kind, min(interval, end - time.monotonic()))
            asked += 1
            if isinstance(reply, bytes):
                return reply
            if reply is _LOST:
                interval = min(_MORE_PATIENT * interval, most)
        raise DeviceError(
            f"the device did not answer {kind.name} within {limit:g} s, asked {asked} times"
            f"{self.transport.diagnosis()}"
        )

    def transfer(self, kind: Kind, size: int, piece: Callable[[int, int], bytes], room: int):
        """Ask for one piece after the other, smaller ones where frames get lost.

        Parameters
        ----------
        kind : Kind
            What to ask.
        size : int
            Bytes in all.
        piece : callable
            The request's payload from a piece's offset and size.
        room : int
            Bytes that a piece can have.

        Yields
        ------
        bytes
            Each piece's reply.
        """
        offset = 0
        while offset < size:
            count = min(self.room, room, size - offset)
            payload = piece(offset, count)
            if count > _LEAST_ROOM:
                interval = min(self._delay(kind).interval, self.timeout)
                reply = self._ask(self._frame(kind, payload), kind, interval)
                if not isinstance(reply, bytes):
                    self.retries += 1
                    self.room = max(_LEAST_ROOM, min(self.room, count) // 2)
                    continue
            else:
                reply = self.request(kind, payload)
            self.room = min(self.room + _MORE_ROOM, MAX_PAYLOAD)
            yield reply
            offset += count

    def _delay(self, kind: Kind) -> _Delay:
        return self._run_delay if kind == Kind.RUN else self._short_delay

    def _frame(self, kind: Kind, payload: bytes) -> bytes:
        self._sequence = (self._sequence + 1) & 0xFF
        return encode(Frame(kind, self._sequence, payload))

    def _ask(self, frame: bytes, kind: Kind, interval: float) -> bytes | object:
        """Ask once: the reply's payload, or what became of it."""
        first = self._last_asked != self._sequence
        self._last_asked = self._sequence
        asked = time.monotonic()
        self.transport.write(frame)
        reply = self._await(kind, asked + interval)
        # The delay of a reply to a repeated request would be measured from the wrong time.
        if first and isinstance(reply, bytes):
            self._delay(kind).learn(time.monotonic() - asked)
        return reply

    def _await(self, kind: Kind, deadline: float) -> bytes | object:
        decoder = self._decoder
        damaged = decoder.damaged
        while (left := deadline - time.monotonic()) > 0:
            for frame in decoder.feed(self.transport.read(left)):
                reply = self._judge(kind, frame)
                if reply is not None:
                    return reply
            if decoder.damaged > damaged and not decoder.pending:
                return _DAMAGED_FRAME
        # Noise may have looked like the start of a frame, and the reply like its payload.
        for frame in decoder.give_up():
            reply = self._judge(kind, frame)
            if reply is not None:
                return reply
        return _LOST

    def _judge(self, kind: Kind, frame: Frame) -> bytes | object | None:
        """The reply's payload, None for a frame that is none."""
        if frame.kind == Kind.FAULT and (report := FaultReport.parse(frame.payload)):
            raise Fault(report)
        if frame.kind == Kind.ERROR and frame.payload == bytes([_DAMAGED]):
            return _DAMAGED_FRAME  # whatever its number: that may have been what was damaged
        if frame.sequence != self._sequence:
            return None  # a late reply to an earlier request
        if frame.kind == Kind.ERROR:
            code = frame.payload[0] if frame.payload else 0
            if code == _BAD_INPUT:
                raise DamagedInput
            raise DeviceError(
                f"the device refused {kind.name}: {_ERRORS.get(code, f'error {code}')}"
            )
        return frame.payload if frame.kind == kind | REPLY else None


_LOST, _DAMAGED_FRAME = object(), object()
"""What became of a request: no answer in time; it or its answer arrived damaged."""


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

    def piece(offset: int, count: int) -> bytes:
        return struct.pack("<BI", index, offset) + data[offset : offset + count]

    for _reply in link.transfer(Kind.WRITE, len(data), piece, MAX_PAYLOAD - 5):
        pass


def run(
    link: Link,
    inputs: list[bytes],
    outputs: int,
    timeout: float,
    *,
    most_ticks: int = 0,
    steps: int = ALL_STEPS,
) -> tuple[int, list[int]]:
    """Run one inference on inputs already sent.

    Parameters
    ----------
    link : Link
        To the device.
    inputs : list of bytes
        What was sent, for its CRC.
    outputs : int
        How many the model has.
    timeout : float
        Seconds until the device is given up.
    most_ticks : int
        After which the device ends the run by itself; 0 for never.
    steps : int
        To do; firmware that was not built to be profiled does all or refuses.

    Returns
    -------
    int
        Ticks of the device's timer.
    list of int
        The CRC of each output.
    """
    crcs = b"".join(CRC.pack(zlib.crc32(data)) for data in inputs)
    limit = min(-(-most_ticks // 1024), 2**32 - 1)
    payload = link.request(Kind.RUN, struct.pack("<IH", limit, steps) + crcs, timeout)
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

    def piece(offset: int, count: int) -> bytes:
        return struct.pack("<BIB", index, offset, count)

    data = b"".join(link.transfer(Kind.READ, size, piece, MAX_PAYLOAD))
    if len(data) != size or zlib.crc32(data) != crc:
        raise DeviceError(f"output {index} does not match its CRC: memory changed after the run")
    return data


def stack_used(link: Link) -> int:
    """Bytes of stack that the device has used at most since its reset."""
    payload = link.request(Kind.STACK)
    if len(payload) != 4:
        raise DeviceError(f"the device answered STACK with {len(payload)} bytes: expected 4")
    return int.from_bytes(payload, "little")


def step_times(link: Link, cycles: bool = False) -> tuple[list[int], float]:
    """When each step of the last run began, and when the last one ended.

    Parameters
    ----------
    link : Link
        To firmware that was built to be profiled.
    cycles : bool
        Of the core; else ticks of the timer.

    Returns
    -------
    list of int
        Modulo 2**32, one more than there are steps.
    float
        What taking one of these times takes.
    """
    times: list[int] = []
    while True:
        payload = link.request(Kind.TIMES, struct.pack("<BH", cycles, len(times)))
        if len(payload) < 10 or len(payload) % 4 != 2:
            raise DeviceError(f"the device answered TIMES with {len(payload)} bytes")
        steps, overhead = struct.unpack_from("<HI", payload)
        times += struct.unpack_from(f"<{(len(payload) - 6) // 4}I", payload, 6)
        if len(times) > steps:
            return times[: steps + 1], overhead / 64


def read_result(link: Link, index: int, size: int) -> bytes:
    """What a step of the last run computed; results are counted through all steps."""

    def piece(offset: int, count: int) -> bytes:
        return struct.pack("<HIB", index, offset, count)

    return b"".join(link.transfer(Kind.RESULT, size, piece, MAX_PAYLOAD))
