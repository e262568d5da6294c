"""What a run on a GPU did so far, on disk: a kernel that hangs must not take results with it.

Each item is noted before it runs and after. A run that finds an item noted as running, and no more,
knows that the process before it ended there, and passes the item over.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

RUNNING, DONE, FAILED = "running", "done", "failed"

LOST = "did not return: the kernel hung, or ended the process"
TOO_OFTEN = 2
"""A kernel with which so many items were lost is not tried any more."""


class Journal:
    """Items of a stage and what came of them.

    Parameters
    ----------
    path : Path
        A file of JSON lines; what an earlier process wrote there is read.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.entries: dict[str, dict] = {}
        self.lost: Counter[str] = Counter()
        if self.path.is_file():
            for line in self.path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                    self.entries[entry["key"]] = entry
                except (ValueError, KeyError, TypeError):  # cut short
                    continue
        for entry in list(self.entries.values()):
            if entry["state"] == RUNNING:
                self.failed(entry["key"], LOST, kernel=entry.get("kernel"))
        for entry in self.entries.values():
            if entry.get("error") == LOST and entry.get("kernel"):
                self.lost[entry["kernel"]] += 1

    def settled(self, key: str) -> bool:
        """Whether there is nothing left to do for an item."""
        return key in self.entries

    def refused(self, kernel: str) -> bool:
        """Whether a kernel has been lost too often."""
        return self.lost[kernel] >= TOO_OFTEN

    def running(self, key: str, kernel: str | None = None) -> None:
        """Note that an item starts."""
        self._write({"key": key, "state": RUNNING, "kernel": kernel})

    def done(self, key: str, data: dict) -> None:
        """Note what came of an item."""
        self._write({"key": key, "state": DONE, "data": data})

    def failed(self, key: str, error: str, kernel: str | None = None) -> None:
        """Note why nothing came of an item."""
        self._write({"key": key, "state": FAILED, "error": error, "kernel": kernel})

    def data(self) -> list[dict]:
        """What came of all items that are done."""
        return [entry["data"] for entry in self.entries.values() if entry["state"] == DONE]

    def _write(self, entry: dict) -> None:
        self.entries[entry["key"]] = entry
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
