"""What every kind of export shares: how it is made, told and written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tbn_tvm.errors import UsageError
from tbn_tvm.micro.export import arduino, lib, mlf, zephyr
from tbn_tvm.micro.export.facts import Facts
from tbn_tvm.micro.folder import write_folder
from tbn_tvm.runtime import content_hash

if TYPE_CHECKING:
    from tbn_tvm.compiler import Imported
    from tbn_tvm.micro.quantization import Calibration
    from tbn_tvm.targets import Board

SCHEMA = 1
"""Version of the manifest."""

MANIFEST = "tbn-tvm.json"
"""File of a folder that tells what it holds, so that a later export may replace it."""

FORMAT = "tbn-tvm export"

ANY_CORE = "c"
"""The target that is no board: C for any core."""

ARCHIVE = "mlf"
"""The kind that is one file."""

_WRITERS: dict[str, Callable[[Facts], dict[str, bytes]]] = {
    "lib": lib.files,
    "arduino": arduino.files,
    "zephyr": zephyr.files,
    ARCHIVE: mlf.files,
}
KINDS = tuple(_WRITERS)


@dataclass(frozen=True)
class Export:
    """A model in a form that others build.

    Attributes
    ----------
    kind : str
        One of ``KINDS``.
    facts : Facts
        About the model.
    files : dict of str to bytes
        By path relative to the folder, or in the archive.
    """

    kind: str
    facts: Facts
    files: dict[str, bytes] = field(repr=False)

    @property
    def memory(self) -> dict:
        """Planned bytes: ``weights``, ``arena``, ``arena_lower_bound``."""
        return self.facts.lowered.memory

    @property
    def default_path(self) -> str:
        """Where it goes if nobody says."""
        name = self.facts.name
        return f"{name}.tar" if self.kind == ARCHIVE else f"{name}-{self.kind}"

    def save(self, path: str | os.PathLike) -> Path:
        """Write the archive, or the folder, of which a former export is replaced.

        Raises
        ------
        UsageError
            Where the path holds something else, or files of an export that were edited.
        """
        path = Path(path)
        check_destination(self.kind, path)
        if self.kind == ARCHIVE:
            return mlf.write_archive(path, self.files)
        return write_folder(path, {**self.files, MANIFEST: self._manifest()}, MANIFEST)

    def _manifest(self) -> bytes:
        facts = self.facts
        fields = {
            "format": FORMAT,
            "schema": SCHEMA,
            "kind": self.kind,
            "name": facts.name,
            "target": facts.target,
            "digest": facts.digest,
            "versions": facts.versions,
            **facts.lowered.signature.to_dict(),
            "memory": self.memory,
            "layers": [layer.to_dict() for layer in facts.lowered.model.layers],
            "quantization": facts.lowered.quantization and facts.lowered.quantization.to_dict(),
            "files": {n: hashlib.sha256(d).hexdigest() for n, d in sorted(self.files.items())},
        }
        return json.dumps({**fields, "content_hash": content_hash(fields)}, indent=1).encode()


def create_export(
    model: Imported,
    kind: str,
    board: Board | None = None,
    *,
    dump_ir: Path | None = None,
    calibration: Calibration | None = None,
    records: str | os.PathLike | None = None,
) -> Export:
    """Lower a model and print it as C in the form of an export.

    Parameters
    ----------
    model : Imported
        The model.
    kind : str
        One of ``KINDS``.
    board : Board, optional
        What for; any core by default.
    dump_ir : Path, optional
        A folder for the IR after each phase.
    calibration : Calibration, optional
        Samples from which int8 activations get their scales; float32 without.
    records : path, optional
        A folder of ``tbn-tvm tune`` for the board.

    Raises
    ------
    UsageError
        For an unknown kind, or a model whose samples depend on one another.
    TbnError
        For operators that have no form in plain C.
    """
    from tbn_tvm.compiler import versions
    from tbn_tvm.micro.lower import lower_model

    if kind not in KINDS:
        raise UsageError(f"unknown kind of export {kind!r}: expected one of {', '.join(KINDS)}")
    lowered = lower_model(model, board, dump_ir=dump_ir, calibration=calibration, records=records)
    digest, sources = lowered.sources()
    facts = Facts(lowered, digest, sources, versions(), board)
    return Export(kind, facts, _WRITERS[kind](facts))


def check_destination(kind: str, path: Path) -> None:
    """Refuse a path that an export must not replace.

    Raises
    ------
    UsageError
        With what is there instead.
    """
    if kind == ARCHIVE:
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; a Model Library Format archive is a file")
        return
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path}: is a file; an export as {kind} is a folder")
    if not path.is_dir() or not any(path.iterdir()):
        return
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise KeyError("format")
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"{path}: is not empty and holds no export of tbn-tvm; choose another folder"
        ) from None
    if manifest["kind"] != kind:
        raise UsageError(f"{path}: holds an export as {manifest['kind']}; choose another folder")
    for name, digest in files.items():
        file = path / name
        if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise UsageError(
                f"{path}: its file {name} was edited, and the export would replace it; move it "
                "away, or choose another folder"
            )
