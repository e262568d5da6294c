"""Runs stages as processes: each with a budget, started again where it hung or died."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

MOST_STARTS = 12
_LEAST_SECONDS = 12.0
"""Less is not worth starting a process for."""


class Child:
    """A process in a session of its own, whose lines are read as they come."""

    def __init__(self, command: Sequence[str], env: dict, cwd: Path) -> None:
        self.process = subprocess.Popen(
            list(command),
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))
        self.lines.put(None)


def end(process: subprocess.Popen) -> None:
    """Kill a process that leads a session, with everything it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(
    command: Sequence[str],
    env: dict,
    cwd: Path,
    seconds: float,
    silence: float,
    tell: Callable[[str], None],
) -> int | None:
    """Run a command to its end.

    Returns
    -------
    int or None
        Its exit status; None where it was killed: out of time, or silent for too long.
    """
    child = Child(command, env, cwd)
    ends, heard = time.monotonic() + seconds, time.monotonic()
    try:
        while True:
            now = time.monotonic()
            if now >= ends:
                tell(f"   out of time after {seconds:.0f} s")
                return None
            if now - heard >= silence:
                tell(f"   silent for {silence:.0f} s: killed")
                return None
            try:
                line = child.lines.get(timeout=min(ends - now, silence - (now - heard), 1.0))
            except queue.Empty:
                continue
            if line is None:
                return child.process.wait()
            heard = time.monotonic()
            tell(f"   {line}")
    finally:
        end(child.process)


def stage(
    command_for: Callable[[float], Sequence[str]],
    env: dict,
    cwd: Path,
    seconds: float,
    silence: float,
    tell: Callable[[str], None],
    journal: Path | None = None,
) -> str:
    """Run a stage, again and again as long as it gets on.

    Parameters
    ----------
    command_for : callable
        The command, given the seconds that are left.
    env, cwd, silence, tell
        As for :func:`run`.
    seconds : float
        For all starts together.
    journal : Path, optional
        A file that grows as the stage gets on; a stage without one is started once.

    Returns
    -------
    str
        How it ended: ``done``, or what went wrong.
    """
    ends = time.monotonic() + seconds
    status: int | None = None
    for _start in range(MOST_STARTS):
        left = ends - time.monotonic()
        if left < _LEAST_SECONDS:
            return "out of time"
        before = _size(journal)
        status = run(command_for(left), env, cwd, left, silence, tell)
        if status == 0:
            return "done"
        if journal is None or _size(journal) == before:
            break
    return "killed" if status is None else f"exit status {status}"


def _size(path: Path | None) -> int:
    return path.stat().st_size if path is not None and path.is_file() else 0
