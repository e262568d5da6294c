"""Where a model's time goes on a device, and where its results begin to differ from the host's.

The firmware is built anew with a hook between the steps of a run, which takes the time and can end
the run there. The host's expectation is the same generated C, compiled for this machine.
"""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tbn_tvm.errors import ArtifactError, ToolError
from tbn_tvm.micro.project import Project
from tbn_tvm.micro.session import Session
from tbn_tvm.micro.transport import Transport
from tbn_tvm.signature import Signature

RELATIVE, ABSOLUTE = 1e-4, 1e-6
"""How far a float may be from the host's, by the largest value of its tensor, and in any case."""

_COMPILE_LIMIT_S = 300

_HOOKS = """
#include "tbn_profile.h"
uint32_t tbn_profile_end = TBN_ALL_STEPS;
int tbn_profile_step(uint32_t step) { return step == tbn_profile_end; }
"""


@dataclass(frozen=True)
class StepProfile:
    """One step of a run.

    Attributes
    ----------
    layer, kernel : str
        What it belongs to, and what it calls.
    instructions : float
        Emulated instructions, the mean of the runs, without the hook's own.
    cycles : float or None
        Of the core, where that counts them.
    difference, relative : float or None
        The most that a value is away from the host's, as it is and by the largest of the tensor.
    differs : bool or None
        Whether that is more than rounding can make.
    """

    layer: str
    kernel: str
    instructions: float
    cycles: float | None
    difference: float | None = None
    relative: float | None = None
    differs: bool | None = None


@dataclass(frozen=True)
class Profile:
    """What :func:`profile` measured.

    Attributes
    ----------
    board : str
        Its name.
    steps : tuple of StepProfile
        In the order of execution.
    whole : float
        Instructions from the begin of the run to its end, the hooks' own among them.
    hook : float
        Instructions that each of the hooks takes.
    resolution : float
        Instructions in a tick of the timer: how far off a single time can be.
    runs : int
        Whose mean the times are.
    """

    board: str
    steps: tuple[StepProfile, ...]
    whole: float
    hook: float
    resolution: float
    runs: int

    @property
    def instructions(self) -> float:
        """Of all steps."""
        return sum(step.instructions for step in self.steps)

    @property
    def first_difference(self) -> StepProfile | None:
        """The first step whose result differs from the host's, where they were compared."""
        return next((step for step in self.steps if step.differs), None)

    def layers(self) -> list[dict]:
        """The steps summed by layer, in the order in which the layers begin."""
        rows: dict[str, dict] = {}
        for step in self.steps:
            row = rows.setdefault(
                step.layer,
                {
                    "layer": step.layer,
                    "steps": 0,
                    "instructions": 0.0,
                    "cycles": None if step.cycles is None else 0.0,
                    "difference": step.difference,
                    "relative": step.relative,
                    "differs": step.differs,
                },
            )
            row["steps"] += 1
            row["instructions"] += step.instructions
            if step.cycles is not None:
                row["cycles"] += step.cycles
            if step.differs is not None:
                row["difference"] = max(row["difference"], step.difference)
                row["relative"] = max(row["relative"], step.relative)
                row["differs"] = row["differs"] or step.differs
        return list(rows.values())

    def to_dict(self) -> dict:
        """For JSON."""
        first = self.first_difference
        return {
            **asdict(self),
            "instructions": self.instructions,
            "layers": self.layers(),
            "first_difference": None if first is None else first.layer,
        }


def profile(
    folder: str | Path,
    inputs: dict[str, np.ndarray],
    *,
    compare: bool = False,
    runs: int = 8,
    run_timeout: float = 60.0,
    transport: Transport | None = None,
) -> Profile:
    """Run a project's model on its device and measure every step.

    Parameters
    ----------
    folder : path
        A project's.
    inputs : dict of str to numpy.ndarray
        By name; of a batch the first sample is taken.
    compare : bool
        Whether to compare every step's result with the host's. It takes a run a step.
    runs : int
        How often to measure: a time is known to a tick, their mean somewhat better.
    run_timeout : float
        Seconds to wait for one inference.
    transport : Transport, optional
        Carries the bytes, to firmware of ``build(folder, "profile")``; the emulator by default.

    Raises
    ------
    ToolError
        Where there is no compiler for the device, or, to compare, none for this machine.
    DeviceError
        Where the device stays silent or faults.
    """
    session = Session(folder, run_timeout=run_timeout, transport=transport, firmware="profile")
    steps = session.project.memory.get("steps", [])
    if any("results" not in step for step in steps):
        raise ArtifactError(f"{folder}: tells nothing of its steps; compile the model again")
    scale = float(session.project.board.instructions_per_tick)
    pieces = session.sample(inputs)
    with session:
        measured = [session.timed(pieces) for _ in range(runs)]
        # A hook's time is that of reading the timer: ticks are too coarse for a single one.
        times = [sample.ticks for sample in measured]
        ticks, whole = _means(times), float(np.mean([_differences(t).sum() for t in times]))
        hook = float(np.mean([sample.hook_ticks for sample in measured]))
        cycles = None
        if any(len(set(sample.cycles)) > 1 for sample in measured):
            hook_cycles = float(np.mean([sample.hook_cycles for sample in measured]))
            cycles = np.maximum(_means([s.cycles for s in measured]) - hook_cycles, 0)
        differences = itertools.repeat((None, None, None))
        if compare:
            with Reference(session.project) as reference:
                differences = _compared(session, reference, pieces)
    instructions = np.maximum(ticks - hook, 0) * scale
    return Profile(
        session.project.board.name,
        tuple(
            StepProfile(
                step["layer"],
                step["kernel"],
                float(instructions[index]),
                None if cycles is None else float(cycles[index]),
                *difference,
            )
            for index, (step, difference) in enumerate(zip(steps, differences, strict=False))
        ),
        whole * scale,
        hook * scale,
        scale,
        runs,
    )


def _differences(times: list[int]) -> np.ndarray:
    """What lies between one time and the next, all modulo 2**32."""
    return np.diff(np.array(times, "uint32")).astype("uint32")


def _means(times: list[list[int]]) -> np.ndarray:
    return np.mean([_differences(t) for t in times], axis=0)


def random_inputs(signature: Signature) -> dict[str, np.ndarray]:
    """Numbers to run a model on that was given none: one sample of each input, always the same."""
    generator, inputs = np.random.default_rng(0), {}
    for spec in signature.inputs:
        one = spec.with_batch(1)
        if np.dtype(spec.dtype).kind == "f":
            inputs[spec.name] = generator.standard_normal(one.shape).astype(spec.dtype)
        else:
            inputs[spec.name] = generator.integers(0, 2, one.shape).astype(spec.dtype)
    return inputs


class Reference:
    """A project's model, compiled for this machine.

    Parameters
    ----------
    project : Project
        The project.

    Raises
    ------
    ToolError
        Where there is no C compiler, or it refuses the code.
    """

    def __init__(self, project: Project) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise ToolError(
                "comparing needs a C compiler for this machine (cc); on Debian: apt-get install gcc"
            )
        self._folder = tempfile.TemporaryDirectory(prefix="tbn_tvm_")
        try:
            self._library = self._build(project, compiler, Path(self._folder.name))
        except BaseException:
            self._folder.cleanup()
            raise

    @staticmethod
    def _build(project: Project, compiler: str, folder: Path) -> ctypes.CDLL:
        for name, data in project.files.items():
            if name.endswith((".c", ".h")):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)
        (folder / "hooks.c").write_text(_HOOKS)
        # As the firmware's compiler: no product and sum in one rounding.
        options = ["-std=c99", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-DTBN_PROFILE"]
        sources = [f"{project.name}.c", "tbn_model.c", "hooks.c"]
        command = [compiler, *options, "-I.", "-Idevice", *sources, "-lm", "-o", "model.so"]
        try:
            result = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=_COMPILE_LIMIT_S
            )
        except subprocess.TimeoutExpired:
            raise ToolError(f"{compiler} ran for more than {_COMPILE_LIMIT_S} s") from None
        if result.returncode:
            reason = result.stderr.strip()
            if "__ARM_FEATURE_MVE" in reason or "vector instructions" in reason:
                reason = "its kernels use vector instructions that only the board's core has"
            raise ToolError(f"the model does not compile for this machine: {reason}")
        return ctypes.CDLL(str(folder / "model.so"))

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *details) -> None:
        self._folder.cleanup()

    def run(self, inputs: list[bytes], steps: int) -> None:
        """Run so many steps."""
        size = ctypes.c_uint32()
        place = self._library.tbn_model_input
        place.restype = ctypes.c_void_p
        for index, data in enumerate(inputs):
            ctypes.memmove(place(index, ctypes.byref(size)), data, len(data))
        ctypes.c_uint32.in_dll(self._library, "tbn_profile_end").value = steps
        self._library.tbn_model_run()

    def result(self, index: int) -> bytes:
        """What a step computed; results are counted through all steps."""
        size = ctypes.c_uint32()
        place = self._library.tbn_profile_result
        place.restype = ctypes.c_void_p
        return ctypes.string_at(place(index, ctypes.byref(size)), size.value)


def _compared(session: Session, reference: Reference, inputs: list[bytes]) -> list[tuple]:
    """Difference, relative difference and whether it counts, of each step."""
    found, index = [], 0
    for number, step in enumerate(session.project.memory["steps"], 1):
        reference.run(inputs, number)
        session.run_steps(inputs, number)
        worst = (0.0, 0.0, False)
        for _name, dtype in step["results"]:
            expected = reference.result(index)
            actual = session.result(index, len(expected))
            worst = tuple(map(max, worst, difference(expected, actual, dtype)))
            index += 1
        found.append(worst)
    return found


def difference(expected: bytes, actual: bytes, dtype: str) -> tuple[float, float, bool]:
    """How far two tensors are apart, absolutely and by the largest value; whether that counts.

    Integers have to be the same; floats may differ by roundings, and not-a-numbers are the same.
    """
    wanted, got = (np.frombuffer(data, dtype) for data in (expected, actual))
    if wanted.dtype.kind != "f":
        wanted, got = wanted.astype("float64"), got.astype("float64")
        away = np.abs(wanted - got)
        tolerance = 0.0
    else:
        same = (wanted == got) | (np.isnan(wanted) & np.isnan(got))
        with np.errstate(invalid="ignore"):
            away = np.where(same, 0.0, np.abs(wanted.astype("float64") - got.astype("float64")))
        away = np.where(np.isnan(away), np.inf, away)
        finite = np.abs(wanted[np.isfinite(wanted)].astype("float64"))
        tolerance = RELATIVE * finite.max(initial=0.0) + ABSOLUTE
    most = float(away.max(initial=0.0))
    largest = float(np.nanmax(np.abs(wanted.astype("float64")), initial=0.0)) or 1.0
    return most, most / largest, bool(most > tolerance)
