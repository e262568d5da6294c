"""Tuning records: which kernel and configuration measured best, for a workload on a target.

Here lie, a folder a target, the records that come with the package; ``tbn-tvm tune`` writes a
user's own. They are looked for in this order:

1. the folder a user names (``--records DIR``, ``records=``),
2. the shipped ones,
3. the folder in the environment variable ``TBN_TVM_RECORDS``,

and where none has an answer the rules next to the kernels do. A record answers only for exactly its
workload, its target and the version of the kernel that it was measured with.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import tvm

from tbn_tvm.schedules.families import Family
from tbn_tvm.schedules.kernel import Config, Kernel
from tbn_tvm.schedules.records import store
from tbn_tvm.schedules.records.identity import identity
from tbn_tvm.schedules.records.store import Record
from tbn_tvm.schedules.rules import Workload

SHIPPED = Path(__file__).parent
VARIABLE = "TBN_TVM_RECORDS"


class Records:
    """The records that apply to a target, as ``LowerTiledProducts`` asks for them.

    Parameters
    ----------
    found : dict
        The target's identity.
    folders : sequence of (str, Path)
        A name for reports and a folder, in the order in which they are asked.
    """

    def __init__(self, found: dict, folders) -> None:
        self.identity = found
        self.folders = tuple((name, Path(folder)) for name, folder in folders)

    @classmethod
    def load(
        cls, target: tvm.target.Target | dict, user_dir: str | os.PathLike | None = None
    ) -> Records:
        """Records of a target; files are read when they are asked for.

        Parameters
        ----------
        target : tvm.target.Target or dict
            What is compiled for.
        user_dir : path, optional
            A folder that ``tbn-tvm tune`` wrote; goes before the shipped records.
        """
        if not isinstance(target, tvm.target.Target):
            target = tvm.target.Target(target)
        folders = [("shipped", SHIPPED)]
        if user_dir is not None:
            folders.insert(0, ("user", Path(user_dir)))
        if os.environ.get(VARIABLE):
            folders.append(("user", Path(os.environ[VARIABLE])))
        return cls(identity(target), folders)

    def kernel(self, family: Family, workload: Workload) -> str | None:
        """The name of the kernel that measured best, or None where nothing was recorded."""
        for _source, path, record in self._found(workload):
            known = {
                name: entry
                for name, entry in record.kernels.items()
                if any(rule.kernel == name and rule.fits(workload) for rule in family.rules)
            }
            usable = {
                name: entry
                for name, entry in known.items()
                if _is_current(path, family.kernels[name], entry)
            }
            if usable:
                return min(usable, key=lambda name: usable[name].cost)
        return None

    def config(self, kernel: Kernel, regime: Workload) -> tuple[dict[str, int], str] | None:
        """A kernel's recorded configuration for a regime, and its source.

        Returns
        -------
        (dict, str) or None
            The source is ``shipped``, or ``user`` and the file.
        """
        for source, path, record in self._found(regime):
            entry = record.kernels.get(kernel.name)
            if entry is None or entry.config is None or not _is_current(path, kernel, entry):
                continue
            if not fits(kernel, regime, entry.config):
                store.ignored(path, f"{kernel.name} does not take the configuration {entry.config}")
                continue
            return dict(entry.config), source if source == "shipped" else f"user {path}"
        return None

    def _found(self, workload: Workload) -> Iterator[tuple[str, Path, Record]]:
        for source, folder in self.folders:
            record = store.read(folder, workload, self.identity)
            if record is not None:
                yield source, folder / record.path, record


def fits(kernel: Kernel, regime: Workload, config: Config) -> bool:
    """Whether a configuration names the kernel's parameters with values from their candidates."""
    space = kernel.space(regime)
    return (
        config.keys() == space.keys()
        and all(config[name] in values for name, values in space.items())
        and kernel.valid(regime, config)
    )


def _is_current(path: Path, kernel: Kernel, entry: store.Entry) -> bool:
    if entry.version == kernel.version:
        return True
    store.ignored(
        path, f"measured with version {entry.version} of {kernel.name}, now {kernel.version}"
    )
    return False
