"""Frames and the host's end of the conversation, over a line that loses and damages bytes."""

import struct
import zlib
from collections.abc import Callable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tbn_tvm.errors import DeviceError
from tbn_tvm.micro import protocol
from tbn_tvm.micro.fault import REGISTERS
from tbn_tvm.micro.protocol import DamagedInput, Decoder, Fault, Frame, Kind, Link, encode

SETTINGS = settings(max_examples=60, deadline=None)
FLUSH = bytes(protocol.HEADER.size + protocol.MAX_PAYLOAD + protocol.CRC.size)
"""Completes any frame begun, as the host's retries do."""

frames = st.builds(
    Frame, st.integers(0, 255), st.integers(0, 255), st.binary(max_size=protocol.MAX_PAYLOAD)
)


def decoded(*pieces: bytes) -> list[Frame]:
    decoder = Decoder()
    return [frame for piece in pieces for frame in decoder.feed(piece)]


# -- frames ----------------------------------------------------------------------------------


@SETTINGS
@given(frames)
def test_a_frame_comes_back(frame):
    assert decoded(encode(frame)) == [frame]


def test_a_frame_is_laid_out_as_documented():
    data = encode(Frame(Kind.READ, 7, b"xy"))
    check = 0x5A + 4 + 3 * 7 + 5 * 2
    assert data[:7] == b"\xa7\x04\x07\x02" + bytes([check]) + b"xy"
    assert data[7:] == struct.pack("<I", zlib.crc32(data[1:7]))


@SETTINGS
@given(st.lists(frames, max_size=3), st.data())
def test_frames_come_back_however_the_stream_is_cut(sent, data):
    stream = b"".join(map(encode, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert decoded(*pieces) == sent


@SETTINGS
@given(st.lists(st.tuples(st.binary(max_size=40), frames), max_size=3), st.binary(max_size=40))
def test_garbage_around_frames_is_skipped(sent, behind):
    stream = b"".join(garbage + encode(frame) for garbage, frame in sent) + behind
    assert decoded(stream, FLUSH) == [frame for _, frame in sent]


@SETTINGS
@given(frames, frames, st.data())
def test_a_truncated_frame_hides_none_behind_it(broken, whole, data):
    kept = data.draw(st.integers(0, len(encode(broken)) - 1))
    # Otherwise the second frame's first bytes are just those that the first one lacks.
    assume(not encode(whole).startswith(encode(broken)[kept:]))
    assert decoded(encode(broken)[:kept]) == []
    assert decoded(encode(broken)[:kept], encode(whole), FLUSH) == [whole]


def test_no_damaged_byte_makes_another_frame():
    data = encode(Frame(Kind.WRITE, 200, bytes(range(20))))
    for offset in range(len(data)):
        for change in range(1, 256):
            damaged = bytearray(data)
            damaged[offset] ^= change
            assert decoded(bytes(damaged), FLUSH) == [], (offset, change)


@SETTINGS
@given(frames, st.data())
def test_no_damaged_byte_makes_another_frame_of_any_content(frame, data):
    damaged = bytearray(encode(frame))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    assert decoded(bytes(damaged), FLUSH) == []


def test_a_damaged_length_keeps_nobody_waiting():
    decoder = Decoder()
    sent = bytearray(encode(Frame(Kind.READ, 7, b"xy")))
    sent[3] = 200
    assert decoder.feed(bytes(sent) + encode(Frame(1, 2, b"next"))) == [Frame(1, 2, b"next")]
    assert decoder.damaged >= 1 and decoder.pending == 0


@SETTINGS
@given(frames, frames, st.data())
def test_a_frame_that_lost_a_byte_hides_none_behind_it(broken, whole, data):
    stream = bytearray(encode(broken))
    del stream[data.draw(st.integers(0, len(stream) - 1))]
    assert whole in decoded(bytes(stream) + encode(whole), FLUSH)


def test_a_frame_that_is_given_up_shows_what_lies_in_it():
    decoder, whole = Decoder(), Frame(Kind.READ, 7, b"xy")
    begun = encode(Frame(Kind.WRITE, 1, bytes(100)))[:20]
    assert decoder.feed(begun + encode(whole)) == []
    assert decoder.give_up() == [whole]
    assert decoder.give_up() == [] and decoder.pending == 0


# -- the host's end --------------------------------------------------------------------------


class Clock:
    """Time as the link sees it, so that no test waits or depends on the machine's load."""

    now = 0.0

    @classmethod
    def monotonic(cls) -> float:
        return cls.now


@pytest.fixture(autouse=True, scope="module")
def clock():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "time", Clock)
        yield


class Line:
    """A transport whose device answers each whole frame with the bytes a function returns."""

    def __init__(self, answer: Callable[[Frame], bytes]) -> None:
        self.asked: list[Frame] = []
        self._answer, self._decoder, self._waiting = answer, Decoder(), b""

    def write(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            self.asked.append(frame)
            self._waiting += self._answer(frame)

    def read(self, timeout: float) -> bytes:
        Clock.now += 0.001 if self._waiting else timeout
        # A UART gives bytes as they come.
        data, self._waiting = self._waiting[:7], self._waiting[7:]
        return data

    def diagnosis(self) -> str:
        return " (the line is up)"

    def close(self) -> None:
        pass


def reply(frame: Frame, payload: bytes = b"") -> bytes:
    return encode(Frame(frame.kind | protocol.REPLY, frame.sequence, payload))


def linked(answer: Callable[[Frame], bytes]) -> Link:
    return Link(Line(answer), timeout=2.0, attempts=8)


def by_turns(*answers: Callable[[Frame], bytes]) -> Callable[[Frame], bytes]:
    """Each answer once, the last one from then on."""
    left = list(answers)
    return lambda frame: (left.pop(0) if len(left) > 1 else left[0])(frame)


def silent(_frame: Frame) -> bytes:
    return b""


def right(frame: Frame) -> bytes:
    return reply(frame, b"right")


def test_a_reply_is_returned():
    link = linked(right)
    assert link.request(Kind.READ, b"payload") == b"right"
    assert link.transport.asked == [Frame(Kind.READ, 1, b"payload")]
    assert link.retries == 0


def test_sequence_numbers_wrap_around():
    link = linked(lambda frame: reply(frame, bytes([frame.sequence])))
    sequences = [link.request(Kind.HELLO)[0] for _ in range(600)]
    assert sequences == [(i + 1) % 256 for i in range(600)]


@pytest.mark.parametrize("lost", [1, 3, 7])
def test_a_lost_frame_is_asked_for_again_under_the_same_number(lost):
    link = linked(by_turns(*[silent] * lost, right))
    assert link.request(Kind.RUN) == b"right"
    assert link.retries == lost
    assert {frame.sequence for frame in link.transport.asked} == {1}


@pytest.mark.parametrize("offset", range(len(encode(Frame(1, 1, b"right")))))
@pytest.mark.parametrize("change", [0x01, 0x80, 0xFF])
def test_a_damaged_reply_costs_one_retry(offset, change):
    def damaged(frame: Frame) -> bytes:
        data = bytearray(right(frame))
        data[offset] ^= change
        return bytes(data)

    link = linked(by_turns(damaged, right))
    assert link.request(Kind.READ) == b"right"
    assert link.retries == 1


@pytest.mark.parametrize("noise", [b"noise", b"\xa7", b"\xa7\x81\x01\x00\x01", b"\xa7" * 5])
def test_noise_before_a_reply_is_survived(noise):
    link = linked(by_turns(lambda frame: noise + right(frame), right))
    assert link.request(Kind.READ) == b"right"
    assert link.retries <= 1


def test_a_repeated_reply_is_taken_once():
    link = linked(lambda frame: reply(frame, bytes([frame.sequence])) * 3)
    assert [link.request(Kind.READ) for _ in range(5)] == [b"\1", b"\2", b"\3", b"\4", b"\5"]
    assert link.retries == 0


def test_a_late_reply_is_not_taken_for_the_next_ones():
    late = b""

    def answer(frame: Frame) -> bytes:
        """Every first reply comes only when the host has given up waiting for it."""
        nonlocal late
        delivered, late = late, reply(frame, b"answer %d" % frame.sequence)
        return delivered

    link = linked(answer)
    assert [link.request(Kind.READ) for _ in range(3)] == [b"answer 1", b"answer 2", b"answer 3"]
    assert link.retries == 3


def test_a_reply_to_another_kind_of_request_is_ignored():
    def wrong(frame: Frame) -> bytes:
        return encode(Frame(Kind.WRITE | protocol.REPLY, frame.sequence, b"wrong"))

    link = linked(by_turns(wrong, right))
    assert link.request(Kind.READ) == b"right"


def test_a_silent_device_is_an_error_that_says_what_was_tried():
    link, start = linked(silent), Clock.now
    with pytest.raises(DeviceError, match=r"did not answer RUN within 16 s, asked 16 times.*is up"):
        link.request(Kind.RUN)
    # After 0.05 s, then ever longer, up to 2 s.
    assert len(link.transport.asked) == 16
    assert Clock.now - start == pytest.approx(16)


def test_a_device_that_never_stops_making_noise_is_an_error_within_the_limit():
    noise = linked(lambda _frame: b"\xa7\x00noise" * 50)
    link, start = Link(noise.transport, timeout=0.2, attempts=8), Clock.now
    with pytest.raises(DeviceError, match="did not answer HELLO"):
        link.request(Kind.HELLO)
    assert Clock.now - start == pytest.approx(1.6, abs=0.1)


def test_a_time_out_can_be_given_for_one_request():
    link, start = linked(silent), Clock.now
    with pytest.raises(DeviceError, match=r"within 5 s, asked 10 times"):
        link.request(Kind.RUN, timeout=5)
    assert Clock.now - start == pytest.approx(5)


def fault(cause: int = 1, **registers: int) -> bytes:
    words = [registers.get(name, 0) for name in REGISTERS] + [0] * 4
    return struct.pack("<B17I", cause, *words) + b"\0\0"


def test_a_fault_is_reported_whatever_its_number():
    payload = fault(pc=0x1234, lr=0xFFFFFFF9, cfsr=1 << 25)
    link = linked(lambda _frame: encode(Frame(Kind.FAULT, 0, payload)))
    with pytest.raises(Fault, match=r"faulted at 0x00001234: division by zero") as caught:
        link.request(Kind.RUN)
    assert caught.value.report.registers["lr"] == 0xFFFFFFF9
    assert isinstance(caught.value, DeviceError)


@pytest.mark.parametrize("payload", [b"x", b"", fault(cause=99), fault()[:-1], fault() + b"x\0"])
def test_a_fault_frame_of_another_form_is_ignored(payload):
    link = linked(lambda frame: encode(Frame(Kind.FAULT, 0, payload)) + right(frame))
    assert link.request(Kind.RUN) == b"right"


def refuse(code: bytes) -> Callable[[Frame], bytes]:
    return lambda frame: encode(Frame(Kind.ERROR, frame.sequence, code))


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (b"\1", "malformed request"),
        (b"\2", "address outside the buffer"),
        (b"\x63", "error 99"),
        (b"", "error 0"),
    ],
)
def test_a_refusal_is_an_error_at_once(code, told):
    link = linked(refuse(code))
    with pytest.raises(DeviceError, match=f"the device refused WRITE: {told}"):
        link.request(Kind.WRITE)
    assert link.retries == 0


def test_a_damaged_input_is_told_apart():
    with pytest.raises(DamagedInput):
        linked(refuse(b"\3")).request(Kind.RUN)


def test_a_refusal_of_an_earlier_request_is_ignored():
    stale = encode(Frame(Kind.ERROR, 0, b"\1"))
    assert linked(lambda frame: stale + right(frame)).request(Kind.RUN) == b"right"


@pytest.mark.parametrize("told", [b"\4", None], ids=["there", "on the way back"])
def test_damage_is_answered_at_once(told):
    def damaged(frame: Frame) -> bytes:
        if told:
            return encode(Frame(Kind.ERROR, 0, told))
        return right(frame)[:-1] + b"x"

    link, start = linked(by_turns(damaged, right)), Clock.now
    assert link.request(Kind.READ) == b"right"
    assert link.retries == 1
    assert Clock.now - start < 0.02


def test_the_interval_follows_the_answers_delay():
    link = linked(right)
    for _ in range(20):
        link.request(Kind.READ)
    link.transport._answer, start = by_turns(silent, right), Clock.now
    assert link.request(Kind.READ) == b"right"
    assert Clock.now - start < 0.02
    # A run's is its own.
    link.transport._answer, start = by_turns(silent, right), Clock.now
    assert link.request(Kind.RUN) == b"right"
    assert Clock.now - start == pytest.approx(0.05, abs=0.01)


def test_pieces_shrink_where_they_get_lost_and_grow_again():
    lost = [True, True, True]
    line = linked(lambda frame: b"" if lost and lost.pop() else reply(frame)).transport
    link = Link(line)
    protocol.write_input(link, 0, bytes(3000))
    sizes = [len(frame.payload) - 5 for frame in line.asked]
    assert sizes[:5] == [250, 125, 62, 31, 39]
    assert sizes == [*sizes[:3], *sorted(sizes[3:-1]), sizes[-1]]
    assert sum(sizes[3:]) == 3000
    assert link.retries == 3


def test_a_device_that_falls_silent_among_pieces_is_an_error():
    link = linked(by_turns(reply, silent))
    with pytest.raises(DeviceError, match="did not answer WRITE within 16 s"):
        protocol.write_input(link, 0, bytes(600))


# -- requests --------------------------------------------------------------------------------


def greeting(version: int, inputs: list[int], outputs: list[int]) -> bytes:
    sizes = struct.pack(f"<{len(inputs) + len(outputs)}I", *inputs, *outputs)
    return bytes([version]) + b"digest!!" + bytes([len(inputs), len(outputs)]) + sizes


def test_a_greeting_tells_digest_and_sizes():
    payload = greeting(protocol.VERSION, [3136, 4], [40])
    found = protocol.greet(linked(lambda frame: reply(frame, payload)))
    assert found == protocol.Greeting(b"digest!!", (3136, 4), (40,))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        greeting(protocol.VERSION + 1, [4], [4]),
        greeting(protocol.VERSION, [4], [4])[:10],
        greeting(protocol.VERSION, [4], [4])[:-1],
        greeting(protocol.VERSION, [4], [4]) + b"\0",
    ],
    ids=["empty", "newer", "cut", "a size cut", "too long"],
)
def test_a_greeting_of_another_protocol_is_refused(payload):
    with pytest.raises(DeviceError, match=r"speaks protocol .*: build it again"):
        protocol.greet(linked(lambda frame: reply(frame, payload)))


@pytest.mark.parametrize("size", [0, 1, 250, 251, 1000])
def test_an_input_is_written_in_pieces(size):
    memory = bytearray(b"\xee" * size)
    data = bytes(i % 251 for i in range(size))

    def store(frame: Frame) -> bytes:
        index, offset = struct.unpack_from("<BI", frame.payload)
        piece = frame.payload[5:]
        assert index == 3 and len(frame.payload) <= protocol.MAX_PAYLOAD
        memory[offset : offset + len(piece)] = piece
        return reply(frame)

    protocol.write_input(linked(store), 3, data)
    assert memory == data


@pytest.mark.parametrize("size", [0, 1, 255, 256, 1000])
def test_an_output_is_read_in_pieces_and_checked(size):
    data = bytes(i % 253 for i in range(size))

    def fetch(frame: Frame) -> bytes:
        index, offset, count = struct.unpack("<BIB", frame.payload)
        assert index == 2
        return reply(frame, data[offset : offset + count])

    assert protocol.read_output(linked(fetch), 2, size, zlib.crc32(data)) == data


@pytest.mark.parametrize("data", [b"1235", b"123", b"12345", b""])
def test_an_output_that_differs_from_its_crc_is_refused(data):
    link = linked(lambda frame: reply(frame, data))
    with pytest.raises(DeviceError, match="output 0 does not match its CRC"):
        protocol.read_output(link, 0, 4, zlib.crc32(b"1234"))


def test_a_run_sends_the_inputs_crcs_and_returns_ticks_and_the_outputs_crcs():
    payload = struct.pack("<QII", 2**40 + 3, 11, 12)
    link = linked(lambda frame: reply(frame, payload))
    assert protocol.run(link, [b"one", b"two"], 2, 2.0) == (2**40 + 3, [11, 12])
    crcs = struct.pack("<II", zlib.crc32(b"one"), zlib.crc32(b"two"))
    assert link.transport.asked[0].payload == struct.pack("<IH", 0, 0xFFFF) + crcs


@pytest.mark.parametrize(("ticks", "sent"), [(1, 1), (1024, 1), (1025, 2), (2**50, 2**32 - 1)])
def test_a_runs_limit_is_never_below_what_was_asked_for(ticks, sent):
    link = linked(lambda frame: reply(frame, struct.pack("<QI", 1, 11)))
    protocol.run(link, [b""], 1, 2.0, most_ticks=ticks)
    assert struct.unpack_from("<I", link.transport.asked[0].payload) == (sent,)


def test_a_run_answered_for_other_outputs_is_refused():
    link = linked(lambda frame: reply(frame, struct.pack("<QI", 1, 11)))
    with pytest.raises(DeviceError, match="answered RUN with 12 bytes: expected 16"):
        protocol.run(link, [b""], 2, 2.0)
