"""Builds and times candidates with MetaSchedule's builders and runners, whatever they do.

Every candidate is built and run in another process, with a time limit; a failure of any kind is an
:class:`Outcome` like any other.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tvm
from tvm.s_tir import meta_schedule as ms

from tbn_tvm.errors import DeviceError, ToolError
from tbn_tvm.schedules.families import Family
from tbn_tvm.tune import worker

_START_SECONDS = 30.0
"""What starting a worker process, and linking in it, may take beyond the time limit."""

_NO_TORCH = 'raise ImportError("workers do without")\n'
"""Put before PyTorch in workers' path: TVM's FFI would import it if it could, which takes each of
them seconds."""

_MEMORY_SHARE = 0.75
_TOLERANCE = {"float32": 1e-4, "float64": 1e-4}
_COARSE = 3e-2
"""Largest difference of two right results, over the largest output: elsewhere 16 bits."""


@dataclass(frozen=True)
class Outcome:
    """What a candidate did: it took ``seconds`` a call, or failed for the reason ``error``."""

    seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Tracker:
    """An RPC tracker that hands out servers under a key."""

    host: str
    port: int
    key: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}, key {self.key}"


@dataclass(frozen=True)
class Built:
    """A candidate that was built: its specification and the artifact, or an error."""

    mod: tvm.IRModule
    artifact: str | None = None
    error: str | None = None


class Bench:
    """Builds and times candidates of a target.

    Parameters
    ----------
    target : tvm.target.Target
        With a host where it is a GPU.
    family : Family
        Whose kernels candidates name.
    timeout : float
        Seconds that building, and running, one candidate may take.
    tracker : Tracker, optional
        Where candidates run; here by default.
    """

    def __init__(
        self,
        target: tvm.target.Target,
        family: Family,
        timeout: float = 10.0,
        tracker: Tracker | None = None,
    ) -> None:
        check_tools()
        self.target, self.family, self.timeout, self.tracker = target, family, timeout, tracker
        self.device = "cpu" if target.kind.name == "llvm" else target.kind.name
        self.folder = Path(tempfile.mkdtemp(prefix="tbn_tvm_tune_"))
        self._memory = _memory_limit() if self.device == "cpu" else None
        self._rpc = self._runner = self._checker = None
        self._python_path = os.environ.get("PYTHONPATH")
        stubs = self.folder / "stubs"
        stubs.mkdir()
        (stubs / "torch.py").write_text(_NO_TORCH)
        paths = [str(stubs), *([self._python_path] if self._python_path else [])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        if tracker is not None:
            self._rpc = ms.runner.RPCConfig(
                tracker.host, tracker.port, tracker.key, session_timeout_sec=math.ceil(timeout)
            )
        self._builder = ms.builder.LocalBuilder(
            max_workers=os.cpu_count(),
            timeout_sec=max(timeout, 1.0) * 3,
            f_build=worker.Build(family.kernels, ahead=tracker is None),
            f_export=worker.Export(self.folder, linked=tracker is None),
            initializer=self._prepare(),
        )

    @property
    def parallel(self) -> int:
        """How many candidates run at a time."""
        return 1 if self._rpc is None else self.require_fleet()

    @property
    def machine(self) -> str:
        """Where candidates run, in words; figures of different machines are not compared."""
        if self.tracker is not None:
            return f"servers under the key {self.tracker.key}"
        if self.device != "cpu":
            return str(tvm.runtime.device(self.device, 0).device_name)
        return _cpu_name()

    def close(self) -> None:
        """End the worker processes and remove what was built."""
        if self._runner is not None:
            self._runner.pool.shutdown(wait=False)
        if self._checker is not None:
            self._checker.shutdown(wait=False)
        self._runner = self._checker = None
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._python_path is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = self._python_path

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_exception) -> None:
        self.close()

    def build(self, mods: list[tvm.IRModule]) -> list[Built]:
        """Build specifications, several at a time."""
        inputs = [ms.builder.BuilderInput(mod, self.target) for mod in mods]
        results = self._builder.build(inputs) if inputs else []
        return [
            Built(mod, error=reason(result.error_msg))
            if result.error_msg
            else Built(mod, str(result.artifact_path))
            for mod, result in zip(mods, results, strict=True)
        ]

    def time(self, built: list[Built], remove: bool = True) -> Iterator[Outcome]:
        """Time what was built, in order, each as soon as it is known.

        Parameters
        ----------
        built : list of Built
            Those that failed have their outcome already.
        remove : bool
            Delete each artifact behind its run.
        """
        if self._rpc is not None:
            self.require_fleet()
        pending = [candidate for candidate in built if candidate.artifact is not None]
        answers = self._answers([inputs for c in pending for inputs in self._inputs(c)])
        for candidate in built:
            if candidate.artifact is None:
                yield Outcome(error=candidate.error)
                continue
            yield _together([next(answers) for _ in self._inputs(candidate)])
            if remove:
                shutil.rmtree(Path(candidate.artifact).parent, ignore_errors=True)

    def in_turns(self, built: list[Built], rounds: int) -> list[Outcome]:
        """Median times of candidates that take turns, so that all meet the same disturbances."""
        turns = [list(self.time(built, remove=False)) for _ in range(rounds)]
        medians = []
        for outcomes in zip(*turns, strict=True):
            failed = next((outcome for outcome in outcomes if outcome.error), None)
            medians.append(failed or Outcome(statistics.median(o.seconds for o in outcomes)))
        return medians

    def difference(self, built: Built, expected: Built) -> str | None:
        """Why a candidate's outputs are not those of another on the same data; None if they are."""
        results = []
        for candidate in (built, expected):
            outputs = self._outputs(candidate)
            if isinstance(outputs, str):
                return outputs
            results.append(outputs)
        ours, theirs = results
        if ours.shape != theirs.shape:
            return f"outputs of shape {ours.shape}, expected {theirs.shape}"
        scale = float(np.abs(theirs).max()) or 1.0
        error = float(np.abs(ours - theirs).max()) / scale if ours.size else 0.0
        dtype = worker.specified(built.mod)[1].dtype
        if error <= _TOLERANCE.get(dtype, _COARSE):  # not so for NaN
            return None
        return f"outputs differ by {error:.1e} of the largest"

    def require_fleet(self) -> int:
        """The number of servers under the tracker's key.

        Raises
        ------
        DeviceError
            Where the tracker does not answer, or has none.
        """
        hint = (
            "start servers with: python -m tvm.exec.rpc_server --tracker "
            f"{self.tracker.host}:{self.tracker.port} --key {self.tracker.key}"
        )
        try:
            # TVM itself would try for a minute.
            socket.create_connection((self.tracker.host, self.tracker.port), 5).close()
            count = self._rpc.count_num_servers()
        except Exception:  # of many kinds
            raise DeviceError(
                f"no RPC tracker answers at {self.tracker.host}:{self.tracker.port}; start one "
                f"with: python -m tvm.exec.rpc_tracker --port {self.tracker.port} "
                f"--port-end {self.tracker.port + 1}"
            ) from None
        if not count:
            raise DeviceError(f"the RPC tracker at {self.tracker} has no server; {hint}")
        return count

    # -- inside ------------------------------------------------------------------------------

    def _prepare(self) -> worker.Prepare:
        device_code = self.device == "cuda" and self.tracker is None
        return worker.Prepare(self.folder, self._memory, device_code)

    def _inputs(self, candidate: Built) -> list:
        return [
            ms.runner.RunnerInput(
                candidate.artifact,
                self.device,
                [ms.arg_info.TensorInfo(dtype, shape) for dtype, shape in arguments],
            )
            for arguments in worker.arguments_info(candidate.artifact)
        ]

    def _answers(self, inputs: list) -> Iterator[Outcome]:
        """The outcome of each input; one that hangs is given up and the runner replaced."""
        done = 0
        while done < len(inputs):
            arrived: queue.Queue = queue.Queue()
            arguments = self._started(), inputs[done:], arrived
            threading.Thread(target=self._run, args=arguments, daemon=True).start()
            while done < len(inputs):
                try:
                    result = arrived.get(timeout=self.timeout + _START_SECONDS)
                except queue.Empty:
                    self._runner.pool.shutdown(wait=False)
                    self._runner, result = None, f"no answer within {self.timeout:g} s"
                if isinstance(result, str) and self._rpc is not None:
                    # Not a candidate's fault if nobody is left to run any.
                    self.require_fleet()
                done += 1
                yield Outcome(error=result) if isinstance(result, str) else Outcome(result)
                if self._runner is None:
                    break

    def _run(self, runner, inputs: list, arrived: queue.Queue) -> None:
        try:
            if self._rpc is None:
                futures = (runner.run([each])[0] for each in inputs)
            else:
                futures = iter(runner.run(inputs))
            for future in futures:
                result = future.result()
                failed = result.error_msg or not result.run_secs
                arrived.put(
                    reason(result.error_msg or "no time was measured")
                    if failed
                    else statistics.median(float(s) for s in result.run_secs)
                )
        except Exception as error:  # a runner that was ended
            arrived.put(reason(str(error)))

    def _started(self):
        if self._runner is not None:
            return self._runner
        config = ms.runner.EvaluatorConfig(number=1, repeat=3, min_repeat_ms=20)
        if self._rpc is None:
            self._runner = ms.runner.LocalRunner(
                timeout_sec=self.timeout,
                evaluator_config=config,
                f_alloc_argument=worker.Allocate(self.folder),
                initializer=self._prepare(),
            )
        else:
            self._runner = ms.runner.RPCRunner(
                self._rpc,
                config,
                f_alloc_argument=worker.Allocate(self.folder),
                f_cleanup=_cleanup,
                max_workers=self.require_fleet(),
                initializer=self._prepare(),
            )
        return self._runner

    def _outputs(self, candidate: Built) -> np.ndarray | str:
        from tvm.support.popen_pool import PopenPoolExecutor

        if candidate.artifact is None:
            return candidate.error or "not built"
        name, workload, _, _ = worker.specified(candidate.mod)
        whole = self.family.kernels[name].writes_outputs
        rows = None if whole else workload.product.unique_rows
        path = Path(candidate.artifact).parent / "outputs.npy"
        if self._checker is None:
            self._checker = PopenPoolExecutor(
                1, self.timeout + _START_SECONDS, self._prepare(), stderr=subprocess.DEVNULL
            )
        try:
            arguments = rows, candidate.artifact, self.device, self._rpc, str(path)
            future = self._checker.submit(worker.outputs, *arguments)
            future.result(self.timeout + 2 * _START_SECONDS)
            return np.load(path)
        except Exception as error:  # whatever the candidate did to its process
            self._checker.shutdown(wait=False)
            self._checker = None
            return reason(f"{type(error).__name__}: {error}")


def check_tools() -> None:
    """Refuse to start without the packages that MetaSchedule needs.

    Raises
    ------
    ToolError
        With the command that installs them.
    """
    from importlib.util import find_spec

    needed = {
        "xgboost": "xgboost-cpu",
        "cloudpickle": "cloudpickle",
        "psutil": "psutil",
        "tornado": "tornado",
    }
    missing = [package for module, package in needed.items() if find_spec(module) is None]
    if missing:
        raise ToolError(
            f"tuning needs {', '.join(missing)}: pip install {' '.join(missing)} "
            '(or "tbn-tvm[tune]")'
        )


def reason(message: str) -> str:
    """The line of a worker's message that tells what happened."""
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    if not lines:
        return "failed without a word"
    told = [line for line in lines if not line.endswith("An exception occurred")]
    # Of a trace, the last line; a builder or runner puts its own name in front of it.
    return (told or lines)[-1][:300]


def _together(outcomes: list[Outcome]) -> Outcome:
    """The geometric mean of times, or the first failure."""
    failed = next((outcome for outcome in outcomes if outcome.error), None)
    return failed or Outcome(math.exp(statistics.fmean(math.log(o.seconds) for o in outcomes)))


def _cleanup(session, remote_path) -> None:
    """Remove what was uploaded; a session that has crashed is clean already."""
    if session is not None and remote_path is not None:
        with contextlib.suppress(Exception):
            for name in (remote_path, f"{remote_path}.so", ""):
                session.remove(name)


def _memory_limit() -> int | None:
    """Bytes of address space a worker may have: what it starts with and most of what is free."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        own = psutil.Process().memory_info().vms
        return own + int(_MEMORY_SHARE * psutil.virtual_memory().available)
    return None


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    import platform

    return platform.processor() or platform.machine()
