"""A conversation with a device that runs a compiled model."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tbn_tvm.errors import DeviceError
from tbn_tvm.micro import protocol
from tbn_tvm.micro.build import BuildReport, build
from tbn_tvm.micro.fault import Firmware
from tbn_tvm.micro.project import Project
from tbn_tvm.micro.transport import EmulatedBoard, Transport

_INPUT_ATTEMPTS = 8

_EMULATED_PER_SECOND = 20_000_000
"""Instructions that the emulator gets through on any host."""


@dataclass(frozen=True)
class RunStatistics:
    """What the last call of :meth:`Session.run` measured.

    Attributes
    ----------
    instructions : tuple of int
        Emulated instructions of each inference, to within one tick of the device's timer.
    retries : int
        Requests that had to be repeated.
    stack_used : int
        Bytes of stack that the firmware has used at most since its reset, from the pattern that
        start-up fills the stack with.
    """

    instructions: tuple[int, ...]
    retries: int
    stack_used: int = 0


@dataclass(frozen=True)
class StepTimes:
    """When the steps of one run began, and when the last one ended, modulo 2**32.

    Attributes
    ----------
    ticks, cycles : list of int
        Of the timer and of the core, which may not count them.
    hook_ticks, hook_cycles : float
        What taking the time takes.
    """

    ticks: list[int]
    cycles: list[int]
    hook_ticks: float
    hook_cycles: float


class Session:
    """A model on a device: ``with Session(folder) as s: y = s.run(x)``.

    Parameters
    ----------
    project : path
        A project's folder; it is built first.
    timeout : float
        Seconds to wait for the reply to a short request before it is repeated.
    run_timeout : float
        Seconds to wait for one inference.
    transport : Transport, optional
        Carries the bytes; by default the board in the emulator.
    most_instructions : int, optional
        After which the device's watch-dog ends an inference and tells where it was. By default so
        many that the emulator comes to them before ``run_timeout``.
    firmware : str
        ``tbn``, or ``profile`` for firmware that takes the time at every step.
    """

    def __init__(
        self,
        project: str | Path,
        *,
        timeout: float = 2.0,
        run_timeout: float = 60.0,
        transport: Transport | None = None,
        most_instructions: int | None = None,
        firmware: str = "tbn",
    ) -> None:
        self.project = Project.load(project)
        self.build_report: BuildReport = build(project, firmware)
        if most_instructions is None:
            most_instructions = round(run_timeout * _EMULATED_PER_SECOND)
        self._most_instructions = most_instructions
        self._transport = transport
        self._timeouts = (timeout, run_timeout)
        self._link: protocol.Link | None = None
        self.statistics = RunStatistics((), 0)

    def __enter__(self) -> Session:
        if self._transport is None:
            self._transport = EmulatedBoard(self.project.board, Path(self.build_report.elf))
        try:
            self._link = protocol.Link(self._transport, self._timeouts[0])
            with self._faults():
                self._greeting = protocol.greet(self._link)
            self._check_greeting()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *details) -> None:
        self.close()

    def close(self) -> None:
        """End the session; again is harmless."""
        if self._transport is not None:
            self._transport.close()
            self._transport = self._link = None

    def run(self, *args: np.ndarray, **named: np.ndarray):
        """Run the model: arguments and results as :meth:`tbn_tvm.Artifact.run`.

        A batch runs one sample after the other. :attr:`statistics` tells what it took.

        Raises
        ------
        InputError
            Where the inputs differ from the signature.
        DeviceError
            Where the device stays silent, refuses or faults.
        """
        if self._link is None:
            raise DeviceError("the session is closed: use it in a with statement")
        signature = self.project.signature
        arrays = signature.bind(args, named)
        sizes = {
            array.shape[spec.shape.index(extent)]
            for spec, array in zip(signature.inputs, arrays, strict=True)
            for extent in spec.shape
            if isinstance(extent, str)
        }
        if len(sizes) > 1:
            raise DeviceError(
                f"free dimensions of sizes {sorted(sizes)}: a device runs one sample at a time, so "
                "there can be only one"
            )
        samples = sizes.pop() if sizes else 1
        scales = self.project.quantization
        if scales is not None:
            arrays = tuple(
                tensor.quantize(array) for tensor, array in zip(scales.inputs, arrays, strict=True)
            )
        before = self._link.retries
        instructions, rows = [], []
        for sample in range(samples):
            pieces = [
                _sample(spec.shape, array, sample).tobytes()
                for spec, array in zip(signature.inputs, arrays, strict=True)
            ]
            with self._faults():
                ticks, outputs = self._infer(pieces)
            instructions.append(round(ticks * self.project.board.instructions_per_tick))
            rows.append(outputs)
        used = protocol.stack_used(self._link)
        self.statistics = RunStatistics(tuple(instructions), self._link.retries - before, used)
        device = signature if scales is None else scales.on_device(signature)
        results = tuple(
            _joined(spec, [row[index] for row in rows]) for index, spec in enumerate(device.outputs)
        )
        if scales is not None:
            results = tuple(
                tensor.dequantize(y) for tensor, y in zip(scales.outputs, results, strict=True)
            )
        return results[0] if len(results) == 1 else results

    # -- step by step: with firmware that was built to be profiled -----------------------------

    def sample(self, inputs: dict[str, np.ndarray]) -> list[bytes]:
        """The first sample of each input, as the device holds it."""
        signature, scales = self.project.signature, self.project.quantization
        arrays = signature.bind((), inputs)
        if scales is not None:
            arrays = tuple(
                tensor.quantize(array) for tensor, array in zip(scales.inputs, arrays, strict=True)
            )
        return [
            _sample(spec.shape, array, 0).tobytes()
            for spec, array in zip(signature.inputs, arrays, strict=True)
        ]

    def timed(self, inputs: list[bytes]) -> StepTimes:
        """Run, and tell when each step began."""
        with self._faults():
            self._run_steps(inputs)
            ticks, hook_ticks = protocol.step_times(self._link)
            cycles, hook_cycles = protocol.step_times(self._link, cycles=True)
        return StepTimes(ticks, cycles, hook_ticks, hook_cycles)

    def run_steps(self, inputs: list[bytes], steps: int) -> None:
        """Run so many steps."""
        with self._faults():
            self._run_steps(inputs, steps)

    def result(self, index: int, size: int) -> bytes:
        """What a step of the last run computed; results are counted through all steps."""
        with self._faults():
            return protocol.read_result(self._link, index, size)

    # -- the conversation ----------------------------------------------------------------------

    def _infer(self, inputs: list[bytes]) -> tuple[int, list[bytes]]:
        ticks, crcs = self._run_steps(inputs)
        return ticks, [
            protocol.read_output(self._link, index, size, crc)
            for index, (size, crc) in enumerate(zip(self._greeting.outputs, crcs, strict=True))
        ]

    def _run_steps(
        self, inputs: list[bytes], steps: int = protocol.ALL_STEPS
    ) -> tuple[int, list[int]]:
        """Send inputs and run; ticks, and the CRC of each output."""
        most = math.ceil(self._most_instructions / self.project.board.instructions_per_tick)
        for _ in range(_INPUT_ATTEMPTS):
            for index, data in enumerate(inputs):
                protocol.write_input(self._link, index, data)
            with contextlib.suppress(protocol.DamagedInput):
                return protocol.run(
                    self._link,
                    inputs,
                    len(self._greeting.outputs),
                    self._timeouts[1],
                    most_ticks=most,
                    steps=steps,
                )
        raise DeviceError(f"the inputs arrived damaged {_INPUT_ATTEMPTS} times")

    @contextlib.contextmanager
    def _faults(self):
        """Name the functions in a device's report of a fault."""
        try:
            yield
        except protocol.Fault as fault:
            firmware = Firmware(Path(self.build_report.elf))
            limit = f"{self._most_instructions:,} instructions"
            raise DeviceError(fault.report.describe(firmware, limit)) from None

    def _check_greeting(self) -> None:
        expected = bytes.fromhex(self.project.digest)[:8]
        if self._greeting.digest != expected:
            raise DeviceError(
                f"the device runs firmware {self._greeting.digest.hex()}, this project is "
                f"{expected.hex()}: flash it again"
            )


def _sample(shape: tuple, array: np.ndarray, index: int) -> np.ndarray:
    """One sample of an input: its slice along the free dimension, if it has one."""
    for axis, extent in enumerate(shape):
        if isinstance(extent, str):
            return np.ascontiguousarray(array.take([index], axis=axis))
    return array


def _joined(spec, pieces: list[bytes]) -> np.ndarray:
    """Samples' outputs as one array, along the free dimension."""
    one = spec.with_batch(1)
    arrays = [np.frombuffer(piece, spec.dtype).reshape(one.shape) for piece in pieces]
    for axis, extent in enumerate(spec.shape):
        if isinstance(extent, str):
            return np.concatenate(arrays, axis=axis)
    return arrays[0].copy()
