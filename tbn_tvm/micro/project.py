"""A bare-metal project: generated C, the board's files and metadata, in one folder."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tbn_tvm.errors import ArtifactError, FitError, TbnError, UsageError
from tbn_tvm.micro.folder import write_folder
from tbn_tvm.micro.quantization import Quantization
from tbn_tvm.micro.report import fullest_step, planned_memory
from tbn_tvm.runtime import content_hash
from tbn_tvm.signature import Signature
from tbn_tvm.targets import FOLDER as TARGETS
from tbn_tvm.targets import Board, load_board

if TYPE_CHECKING:
    from tbn_tvm.compiler import Imported
    from tbn_tvm.micro.lower import Lowered
    from tbn_tvm.micro.quantization import Calibration

SCHEMA = 1
"""Version of the folder's layout and metadata."""

METADATA = "metadata.json"
MAX_TENSORS = 60
"""Inputs and outputs together whose sizes fit a frame of the device's protocol."""

SERVER_FLASH_BYTES = 2_048
"""What server, drivers and start-up take at least."""

SERVER_RAM_BYTES = 320
"""Static data of server, drivers and start-up."""

_DEVICE = Path(__file__).resolve().parent / "device"


@dataclass(frozen=True)
class Project:
    """A compiled model for a board.

    Attributes
    ----------
    name : str
        The model's name, a C identifier.
    board : Board
        What it is for.
    signature : Signature
        Inputs and outputs as the model has them; the device runs one sample at a time.
    layers : list of dict
        A row a layer, as :class:`tbn_tvm.inspect.LayerInfo`.
    memory : dict
        Planned bytes, as :func:`tbn_tvm.micro.report.planned_memory` gives them.
    digest : str
        SHA-256 of the generated C, hexadecimal; its first eight bytes are in the firmware.
    versions : dict
        Of tbn-tvm, TVM and its FFI.
    files : dict of str to bytes
        Everything but the metadata, by path relative to the folder.
    quantization : Quantization, optional
        How the device's integers stand for the signature's real numbers.
    kernels : list of dict
        The chosen kernels of tiled layers and who chose them.
    """

    name: str
    board: Board
    signature: Signature
    layers: list[dict]
    memory: dict
    digest: str
    versions: dict
    files: dict[str, bytes] = field(repr=False)
    quantization: Quantization | None = None
    kernels: list[dict] = field(default_factory=list)

    def save(self, folder: str | os.PathLike) -> Path:
        """Write the project to a folder, which it replaces if that held a project.

        Raises
        ------
        UsageError
            Where the folder holds something else.
        """
        folder = Path(folder)
        check_destination(folder)
        files = {**self.files, METADATA: self._metadata()}
        return write_folder(folder, files, METADATA, derived="build")

    def _metadata(self) -> bytes:
        fields = {
            "format": "tbn-tvm project",
            "schema": SCHEMA,
            "name": self.name,
            "board": self.board.name,
            "digest": self.digest,
            "versions": self.versions,
            **self.signature.to_dict(),
            "memory": self.memory,
            "layers": self.layers,
            "kernels": self.kernels,
            "quantization": self.quantization and self.quantization.to_dict(),
            "files": {n: hashlib.sha256(d).hexdigest() for n, d in sorted(self.files.items())},
        }
        return json.dumps({**fields, "content_hash": content_hash(fields)}, indent=1).encode()

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Project:
        """Read a project, checking every generated file against the metadata.

        Raises
        ------
        ArtifactError
            Where the folder is missing, no project, altered, or of a newer schema.
        """
        folder = Path(folder)
        again = "compile the model again"
        if not folder.is_dir():
            raise ArtifactError(
                f"{folder}: no such folder; make one with tbn-tvm compile MODEL --target BOARD"
            )
        try:
            fields = json.loads((folder / METADATA).read_text())
            if fields["format"] != "tbn-tvm project":
                raise KeyError("format")
            schema = fields["schema"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ArtifactError(
                f"{folder}: not a tbn-tvm project (no valid {METADATA}); {again}"
            ) from None
        if not isinstance(schema, int) or schema > SCHEMA:
            raise ArtifactError(
                f"{folder}: schema {schema} is newer than {SCHEMA}, the newest this version reads; "
                f"update tbn-tvm, or {again}"
            )
        if fields.get("content_hash") != content_hash(fields):
            raise ArtifactError(f"{folder}: its {METADATA} was altered; {again}")
        files = {}
        for name, digest in fields["files"].items():
            try:
                files[name] = (folder / name).read_bytes()
            except OSError:
                raise ArtifactError(f"{folder}: its file {name} is missing; {again}") from None
            if hashlib.sha256(files[name]).hexdigest() != digest:
                raise ArtifactError(f"{folder}: its file {name} was altered; {again}")
        return cls(
            name=fields["name"],
            board=load_board(fields["board"]),
            signature=Signature.from_dict(fields),
            layers=fields["layers"],
            memory=fields["memory"],
            digest=fields["digest"],
            versions=fields["versions"],
            files=files,
            quantization=Quantization.from_dict(fields.get("quantization")),
            kernels=fields.get("kernels", []),
        )


def check_destination(folder: Path) -> None:
    """Refuse a folder that a project must not replace.

    Raises
    ------
    UsageError
        Where it is a file, or holds something other than a project.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; a project is a folder")
    if folder.is_dir() and any(folder.iterdir()) and not _is_project(folder):
        raise UsageError(
            f"{folder}: is not empty and holds no tbn-tvm project; choose another folder"
        )


def create_project(
    model: Imported,
    board: Board,
    *,
    dump_ir: Path | None = None,
    calibration: Calibration | None = None,
    io: str = "arena",
    records: str | os.PathLike | None = None,
) -> Project:
    """Lower a model and generate its project.

    Parameters
    ----------
    model : Imported
        The model.
    board : Board
        What for.
    dump_ir : Path, optional
        A folder for the IR after each phase.
    calibration : Calibration, optional
        Samples from which int8 activations get their scales; float32 without.
    io : str
        Where inputs and outputs lie: ``arena`` or ``static``, as in
        :func:`tbn_tvm.micro.lower.lower_model`.
    records : path, optional
        A folder of ``tbn-tvm tune``.

    Raises
    ------
    FitError
        Where weights or arena alone exceed the board's memory.
    TbnError
        For operators that have no bare-metal form.
    """
    from tbn_tvm.compiler import versions
    from tbn_tvm.micro.lower import lower_model

    tensors = len(model.signature.inputs) + len(model.signature.outputs)
    if tensors > MAX_TENSORS:
        raise TbnError(
            f"the model has {tensors} inputs and outputs: the device's protocol has room for "
            f"{MAX_TENSORS}"
        )
    lowered = lower_model(
        model, board, dump_ir=dump_ir, calibration=calibration, io=io, records=records
    )
    check_fit(board, lowered)
    digest, generated = lowered.sources()
    files = {name: text.encode() for name, text in generated.items()}
    files.update(support_files(board))
    return Project(
        name=model.name,
        board=board,
        signature=model.signature,
        layers=[layer.to_dict() for layer in model.layers],
        memory=planned_memory(lowered),
        digest=digest,
        versions=versions(),
        files=files,
        quantization=lowered.quantization,
        kernels=lowered.kernels,
    )


def check_fit(board: Board, lowered: Lowered) -> None:
    """Refuse a model that cannot fit, with the table of what takes how much.

    Raises
    ------
    FitError
        Where the weights with the least code exceed the flash, or arena, stack and the server's
        data the RAM.
    """
    memory = lowered.memory
    weights = memory["weights"]
    flash = weights + SERVER_FLASH_BYTES
    ram = memory["arena"] + memory["io"] + board.stack_bytes + SERVER_RAM_BYTES
    if flash <= board.flash_bytes and ram <= board.ram_bytes:
        return
    io = f"{memory['io']:,} of inputs and outputs, " if memory["io"] else ""
    raise FitError(
        "\n".join(
            [
                f"the model does not fit {board.name}:",
                f"  flash: {weights:,} bytes of weights, {board.flash_bytes:,} available, "
                f"of which code takes {SERVER_FLASH_BYTES:,} or more",
                f"  RAM: {memory['arena']:,} bytes of arena, {io}"
                f"{board.stack_bytes:,} of stack and {SERVER_RAM_BYTES:,} of the server's, "
                f"{board.ram_bytes:,} available",
                "by layer, bytes:",
                *_layer_lines(lowered),
                "arena, where it is fullest:",
                *(f"  {buffer.name}: {buffer.nbytes:,} bytes" for buffer in fullest_step(lowered)),
                "use a larger p, tile more layers (tbn-tvm inspect shows which are float), or a "
                "smaller input",
            ]
        )
    )


def _layer_lines(lowered: Lowered) -> list[str]:
    """What each layer takes, a line a layer."""
    return [
        f"  {row['layer']}: {row['weights']:,} bytes of weights, {row['scratch']:,} of scratch, "
        f"{row['output']:,} of output, {row['arena']:,} of arena at its fullest step"
        for row in planned_memory(lowered)["layers"]
    ]


def _is_project(folder: Path) -> bool:
    """Whether a folder says that it holds a project: other programs write a metadata.json too."""
    try:
        return json.loads((folder / METADATA).read_text())["format"] == "tbn-tvm project"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def support_files(board: Board) -> dict[str, bytes]:
    """The device's server and the board's files, by their path in the project."""
    files = {f"device/{path.name}": path.read_bytes() for path in sorted(_DEVICE.glob("*.[ch]"))}
    for source in (*board.sources, board.linker_script, TARGETS / "cortex_m" / "sections.ld"):
        files[f"board/{source.name}"] = source.read_bytes()
    return files
