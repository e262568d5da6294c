"""Trying many model files in processes of their own, so that a crash or a hang is a finding."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

FAULTS = ("raised", "crashed", "hung", "differs")
"""Verdicts that are findings. The others: refused, agrees, unjudged (the judge refuses it)."""


@dataclass
class Findings:
    """What came of the files tried.

    Attributes
    ----------
    counts : Counter
        Files by verdict.
    faults : list of tuple
        File, verdict and detail of each finding.
    """

    counts: Counter = field(default_factory=Counter)
    faults: list[tuple[Path, str, str]] = field(default_factory=list)

    def add(self, path: Path, verdict: str, detail: str) -> None:
        """Count one file."""
        self.counts[verdict] += 1
        if verdict in FAULTS:
            self.faults.append((path, verdict, detail))


class Worker:
    """A process of :mod:`tbn_tvm.testing.fuzz_worker`, started anew whenever a file ends it.

    Parameters
    ----------
    folder : Path
        Where it runs.
    seconds : float
        Processor time that one file may take, or twenty times that on the clock.
    nbytes : int
        Memory that one file may take.
    """

    def __init__(self, folder: Path, seconds: float = 10, nbytes: int = 2**31) -> None:
        self._folder, self._seconds, self._nbytes = folder, seconds, nbytes
        self._process: subprocess.Popen | None = None
        self._received = b""

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_exception) -> None:
        self._stop()

    def try_file(self, path: Path) -> tuple[str, str]:
        """The verdict on one file, and its detail."""
        process = self._process or self._start()
        process.stdin.write(f"{path}\n".encode())
        process.stdin.flush()
        verdict, detail = self._answer()
        if verdict != "compiled":
            return verdict, detail
        verdict, detail = self._answer()
        # By then it was the judge that crashed or hung.
        return ("unjudged", verdict) if verdict in ("crashed", "hung") else (verdict, detail)

    def _start(self) -> subprocess.Popen:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tbn_tvm.testing.fuzz_worker", str(self._nbytes)],
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._received = b""
        verdict, _detail = self._answer(seconds=120)
        if verdict != "ready":
            raise RuntimeError("the worker does not start")
        return self._process

    def _answer(self, seconds: float | None = None) -> tuple[str, str]:
        seconds = self._seconds if seconds is None else seconds
        limit = self._used() + seconds
        with selectors.DefaultSelector() as ready:
            ready.register(self._process.stdout, selectors.EVENT_READ)
            # Looked at now and then: on a busy machine much less time is used than passes.
            for _ in range(20):
                while b"\n" not in self._received and ready.select(seconds):
                    content = os.read(self._process.stdout.fileno(), 2**16)
                    if not content:
                        status = self._process.wait()
                        self._stop()
                        return "crashed", f"exit status {status}"
                    self._received += content
                if b"\n" in self._received or self._used() > limit:
                    break
        line, found, self._received = self._received.partition(b"\n")
        if not found:
            self._stop()
            return "hung", f"after {seconds} s"
        return tuple(json.loads(line))

    def _used(self) -> float:
        """Processor seconds of the process so far."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def try_files(paths: Iterable[Path], folder: Path, **limits) -> Findings:
    """Try files one after the other; limits as for :class:`Worker`."""
    findings = Findings()
    with Worker(folder, **limits) as worker:
        for path in paths:
            findings.add(path, *worker.try_file(path))
    return findings
