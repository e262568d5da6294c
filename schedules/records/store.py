"""Record files: one a workload and target, replaced whole, merged when two tuners write."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tbn_tvm.schedules.records.identity import address, digest, folder_name
from tbn_tvm.schedules.rules import Workload

SCHEMA = 1
FORMAT = "tbn-tvm tuning record"
_told: set[str] = set()


class UnusableError(Exception):
    """A file is no record that this version can use; the message says why."""


@dataclass(frozen=True)
class Entry:
    """What was found for one kernel.

    Attributes
    ----------
    version : int
        The kernel's.
    config : dict of str to int, or None
        The best configuration; None where the workload's regimes have records of their own and
        this entry only compares kernels.
    seconds : float or None
        Of one call with it; None for boards.
    default : dict
        What rules alone choose (``kernel``, ``config``) and its ``seconds``, measured in turns
        with the best, or its ``instructions``.
    trials : int
        Configurations of this kernel that were tried.
    machine : str
        Where.
    versions : dict of str to str
        Of ``tvm`` and ``tbn_tvm``.
    instructions : float or None
        Of one call on an emulated board.
    """

    version: int
    config: dict[str, int] | None
    seconds: float | None
    default: dict
    trials: int
    machine: str
    versions: dict[str, str] = field(default_factory=dict)
    instructions: float | None = None

    @property
    def cost(self) -> float:
        """What makes a kernel better than another of the same record: less of this."""
        return self.seconds if self.seconds is not None else self.instructions

    @property
    def ratio(self) -> float:
        """Cost over that of the default."""
        measured = "instructions" if self.seconds is None else "seconds"
        return self.cost / self.default[measured]


@dataclass(frozen=True)
class Record:
    """What tuning found for a workload on a target.

    Attributes
    ----------
    workload : Workload
        Its ``features`` are not kept.
    target : dict
        See :func:`tbn_tvm.schedules.records.identity.identity`.
    kernels : dict of str to Entry
        By kernel.
    """

    workload: Workload
    target: dict
    kernels: dict[str, Entry]

    @property
    def path(self) -> Path:
        """Where it is, inside a folder of records."""
        return relative_path(self.workload, self.target)

    def dumps(self) -> str:
        """The file's text."""
        content = {
            "format": FORMAT,
            "schema": SCHEMA,
            "workload": self.workload.to_dict(),
            "target": self.target,
            "kernels": {name: asdict(entry) for name, entry in sorted(self.kernels.items())},
        }
        return json.dumps({**content, "content_hash": digest(content)}, indent=1) + "\n"

    @classmethod
    def loads(cls, text: str, features: frozenset[str] = frozenset()) -> Record:
        """The inverse of :meth:`dumps`.

        Raises
        ------
        UnusableError
            For anything that it did not write.
        """
        try:
            content = json.loads(text)
            found = content.pop("content_hash")
            if content["format"] != FORMAT:
                raise ValueError
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UnusableError("not a tuning record, or damaged") from None
        if content.get("schema") != SCHEMA:
            raise UnusableError(f"its schema is {content.get('schema')}, not {SCHEMA}")
        if found != digest(content):
            raise UnusableError("it was altered")
        try:
            return cls(
                Workload.from_dict(content["workload"], features),
                content["target"],
                {name: Entry(**entry) for name, entry in content["kernels"].items()},
            )
        except Exception as error:  # whole, so of another writer
            raise UnusableError(f"it describes no workload ({error})") from None


def relative_path(workload: Workload, found: dict) -> Path:
    """The place of a workload's record inside a folder of records."""
    return Path(folder_name(found)) / f"{address(workload, found)}.json"


def read(folder: Path, workload: Workload, found: dict) -> Record | None:
    """The record of a workload and target identity; None, with a notice, for an unusable file."""
    path = folder / relative_path(workload, found)
    try:
        record = Record.loads(path.read_text(encoding="utf-8"), workload.features)
        if record.path != relative_path(workload, found):
            raise UnusableError("it is of another workload or target")
        return record
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnusableError as error:
        reason = str(error)
    except (OSError, UnicodeDecodeError) as error:
        reason = f"cannot be read: {getattr(error, 'strerror', None) or 'not text'}"
    ignored(path, reason)
    return None


def ignored(path: Path, reason: str) -> None:
    """Say that a record is not used, and what to do about it."""
    notice(f"{path}: {reason}; ignored. To measure again: tbn-tvm tune MODEL --records DIR")


def notice(message: str) -> None:
    """A line on standard error, once a process."""
    if message not in _told:
        _told.add(message)
        print(f"tbn-tvm: notice: {message}", file=sys.stderr)


def write(folder: Path, record: Record, contended: frozenset[str] = frozenset()) -> Path:
    """Put a record into a folder, keeping what another tuner has put there meanwhile.

    Parameters
    ----------
    folder : Path
        Of records; made where missing.
    record : Record
        What was found.
    contended : frozenset of str
        Kernels whose recorded configuration was measured again and lost: the new entry replaces
        it. For another kernel the entry that gains more over the default stays.

    Returns
    -------
    Path
        The record's file.
    """
    path = folder / record.path
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        old = read(folder, record.workload, record.target)
        kernels = dict(record.kernels)
        for name, entry in old.kernels.items() if old else ():
            new = kernels.get(name)
            stale = new is not None and (name in contended or new.version != entry.version)
            if new is None or (not stale and entry.ratio < new.ratio):
                kernels[name] = entry
        merged = Record(record.workload, record.target, kernels)
        _replace(path, merged.dumps())
    return path


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within it, no other process is inside for the same folder; the lock ends with a process."""
    import fcntl

    with open(folder / ".lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _replace(path: Path, text: str) -> None:
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".partial")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
