"""Ways to carry bytes to a device."""

from __future__ import annotations

import contextlib
import random
import re
import select
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Protocol

from tbn_tvm.errors import DeviceError, ToolError
from tbn_tvm.micro.fault import Firmware
from tbn_tvm.targets import Board

EMULATOR = "qemu-system-arm"
INSTALL_EMULATOR = "apt-get install qemu-system-arm"
_START_LIMIT_S = 30.0
_END_LIMIT_S = 10.0


class Transport(Protocol):
    """A byte stream to and from a device."""

    def write(self, data: bytes) -> None:
        """Send bytes."""

    def read(self, timeout: float) -> bytes:
        """Wait up to so many seconds for some bytes; empty where none came."""

    def diagnosis(self) -> str:
        """What is known about a device that is silent, to append to an error."""

    def close(self) -> None:
        """End the connection; again is harmless."""


class EmulatedBoard:
    """A board in QEMU, its UART on a socket of its own.

    ``-icount shift=0`` makes emulated time count instructions, the same on every host.

    Parameters
    ----------
    board : Board
        Which machine to emulate.
    elf : Path
        The firmware.
    """

    def __init__(self, board: Board, elf: Path) -> None:
        emulator = shutil.which(EMULATOR)
        if emulator is None:
            raise ToolError(f"{EMULATOR} is not on PATH; on Debian: {INSTALL_EMULATOR}")
        self._elf = Path(elf)
        self._folder = tempfile.TemporaryDirectory(prefix="tbn_tvm_")
        self._process: subprocess.Popen | None = None
        self._socket: socket.socket | None = None
        try:
            self._start(emulator, board, elf)
        except BaseException:
            self.close()
            raise

    def _start(self, emulator: str, board: Board, elf: Path) -> None:
        path = Path(self._folder.name) / "uart"
        self._log = Path(self._folder.name) / "log"
        with socket.socket(socket.AF_UNIX) as listener, self._log.open("wb") as log:
            listener.bind(str(path))
            listener.listen(1)
            self._process = subprocess.Popen(
                [
                    emulator,
                    "-machine",
                    board.emulator_machine,
                    "-icount",
                    "shift=0",
                    "-display",
                    "none",
                    "-monitor",
                    "none",
                    "-chardev",
                    f"socket,id=uart,path={path}",
                    "-serial",
                    "chardev:uart",
                    "-kernel",
                    str(elf),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            deadline = time.monotonic() + _START_LIMIT_S
            while not select.select([listener], [], [], 0.1)[0]:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise DeviceError(f"the emulator did not start{self.diagnosis()}")
            self._socket, _ = listener.accept()

    def write(self, data: bytes) -> None:
        try:
            self._socket.settimeout(_START_LIMIT_S)
            self._socket.sendall(data)
        except OSError:
            raise DeviceError(f"the emulator ended{self.diagnosis()}") from None

    def read(self, timeout: float) -> bytes:
        try:
            if not select.select([self._socket], [], [], max(0.0, timeout))[0]:
                return b""
            data = self._socket.recv(4096)
        except OSError:
            data = b""
        if not data:
            raise DeviceError(f"the emulator ended{self.diagnosis()}")
        return data

    def diagnosis(self) -> str:
        status = None
        if self._process is not None:
            # A dying emulator closes its socket a moment before it ends.
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._process.wait(0.2)
        lines = self._log.read_text(errors="replace").split("\n") if self._log.exists() else []
        told = "; ".join(line.strip() for line in lines[:2] if line.strip())
        told += self._lockup("\n".join(lines))
        ended = f" (exit status {status})" if status is not None else ""
        return ended + (f": {told}" if told else "")

    def _lockup(self, log: str) -> str:
        """Where a core stopped that could not even report a fault, from what QEMU says of it."""
        found = re.search(r"Lockup.*?R13=(\w+).*?R15=(\w+)", log, re.DOTALL)
        if found is None:
            return ""
        sp, pc = (int(value, 16) for value in found.groups())
        firmware = Firmware(self._elf)
        why = ""
        if sp < firmware.stack_limit:
            why = f": stack overflow, raise stack_bytes and __stack_size{firmware.stack}"
        place = firmware.place(pc)
        return f"; the core locked up at 0x{pc:08x}{place and f' ({place})'}, sp 0x{sp:08x}{why}"

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            # One that cannot even be killed is left to the system.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_LIMIT_S)
        self._folder.cleanup()


class NoisyTransport:
    """A line that damages bytes in both directions: to try how a link copes with it.

    Parameters
    ----------
    inner : Transport
        Carries what is left.
    rate : float
        Share of the bytes that are changed in a bit, lost or doubled, each as often.
    seed : int
        Of the damage, which is the same for the same bytes in the same order and direction.

    Attributes
    ----------
    damaged : int
        Bytes so far.
    """

    def __init__(self, inner: Transport, rate: float, seed: int = 0) -> None:
        self.damaged = 0
        self._inner, self._rate = inner, rate
        self._there, self._back = random.Random(2 * seed), random.Random(2 * seed + 1)

    def write(self, data: bytes) -> None:
        self._inner.write(self._travel(data, self._there))

    def read(self, timeout: float) -> bytes:
        return self._travel(self._inner.read(timeout), self._back)

    def diagnosis(self) -> str:
        return self._inner.diagnosis()

    def close(self) -> None:
        self._inner.close()

    def _travel(self, data: bytes, luck: random.Random) -> bytes:
        arrived = bytearray()
        for byte in data:
            if luck.random() >= self._rate:
                arrived.append(byte)
                continue
            self.damaged += 1
            kind = luck.randrange(3)
            if kind == 0:
                arrived.append(byte ^ 1 << luck.randrange(8))
            elif kind == 1:
                arrived += bytes([byte, byte])
        return bytes(arrived)
