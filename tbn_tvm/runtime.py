"""Compiled models for TVM's run time: one file to save, load and run.

The file is an uncompressed zip archive of ``manifest.json``, ``library.so``, ``constants.npz`` and,
for a GPU, compiled kernels as ``device/*.fatbin``. The manifest names every other member's SHA-256
and carries one of its own, so that truncated and altered files are refused before any code in them
is loaded. (A digest guards against damage, not against an author who means harm: load only
artifacts you trust.)
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tbn_tvm._tvm import installed
from tbn_tvm.errors import ArtifactError, InputError, UsageError
from tbn_tvm.signature import Signature

if TYPE_CHECKING:
    import tvm

    from tbn_tvm.meter import MemoryMeter

SCHEMA = 1
"""Version of the file format; files of a newer one are refused."""

_MANIFEST, _LIBRARY, _CONSTANTS = "manifest.json", "library.so", "constants.npz"
_REBUILD = "compile the model again to get a whole one"


@dataclass
class Artifact:
    """A compiled model.

    Attributes
    ----------
    name : str
        The model's name.
    target : dict
        TVM's description of the target.
    signature : Signature
        Inputs and outputs.
    library : bytes
        Shared library with the Relax executable.
    constants : tuple of numpy.ndarray
        What the library is given beside the inputs: tile bits, alphas, biases.
    layers : list of dict
        A row a layer, as :class:`tbn_tvm.inspect.LayerInfo`.
    versions : dict
        Of tbn-tvm, TVM and its FFI, at compile time.
    memory : dict
        The planned use of memory, as :class:`tbn_tvm.memory.MemoryPlan`.
    max_batch : int or None
        The batch that memory is planned for, where a free batch was bounded.
    device_code : dict of str to bytes
        Compiled kernels of a GPU, by what the library calls them.
    source : str
        Source of the kernels of an artifact just compiled for a GPU; it is not saved.
    kernels : list of dict
        Of an artifact just compiled: the kernels of its tiled layers, their configurations and
        where those come from, as :func:`tbn_tvm.schedules.records.report.used_kernels`.
    """

    name: str
    target: dict
    signature: Signature
    library: bytes = field(repr=False)
    constants: tuple[np.ndarray, ...] = field(repr=False)
    layers: list[dict] = field(repr=False, default_factory=list)
    versions: dict = field(default_factory=dict)
    memory: dict = field(default_factory=dict)
    max_batch: int | None = None
    device_code: dict[str, bytes] = field(repr=False, default_factory=dict)
    source: str = field(repr=False, default="")
    kernels: list[dict] = field(repr=False, default_factory=list)
    _entry = None
    _meter = None

    def run(self, *args: np.ndarray, **named: np.ndarray):
        """Run the model.

        Parameters
        ----------
        *args, **named : numpy.ndarray
            The inputs, by position or name, or one mapping from names to arrays.

        Returns
        -------
        numpy.ndarray or tuple of numpy.ndarray
            The output, or a tuple where there are several.

        Raises
        ------
        InputError
            Where the inputs differ from the signature.
        DeviceError
            Where the artifact is for cuda and there is no CUDA device.
        """
        return self.prepare(*args, **named)()

    def prepare(self, *args: np.ndarray, **named: np.ndarray) -> PreparedRun:
        """Check inputs and hand them to TVM, for running again and again.

        Takes and raises what :meth:`run` does.
        """
        import tvm

        arrays = self.signature.bind(args, named)
        self._check_batch(arrays)
        if self._entry is None:
            self._entry = self._load_entry()
        entry, constants = self._entry
        inputs = (tvm.runtime.tensor(array, self._device()) for array in arrays)
        return PreparedRun(entry, (*inputs, *constants), self._device(), self._meter)

    @property
    def peak_memory(self) -> int | None:
        """Bytes of device memory in use at most, from loading to the last run so far.

        Measured on the device and not planned: code, inputs and outputs that are still held
        included. None before the first run, and for CPUs.
        """
        return None if self._meter is None else self._meter.sample()

    def _device(self):
        import tvm

        return tvm.cuda(0) if self.target["kind"] == "cuda" else tvm.cpu()

    def _check_batch(self, arrays: list[np.ndarray]) -> None:
        if self.max_batch is None:
            return
        for spec, array in zip(self.signature.inputs, arrays, strict=True):
            if isinstance(spec.shape[0], str) and array.shape[0] > self.max_batch:
                raise InputError(
                    f"input {spec.name!r} has a batch of {array.shape[0]}: memory was planned for "
                    f"{self.max_batch} at most (--max-batch)"
                )

    def _load_entry(self):
        import tvm
        from tvm import relax

        from tbn_tvm._tvm import check_pair
        from tbn_tvm.cuda import giving_code, require_device
        from tbn_tvm.meter import MemoryMeter

        check_pair()
        self._check_versions()
        device = self._device()
        if self.target["kind"] == "cuda":
            require_device(f"the artifact {self.name!r}")
            tvm.runtime.tensor(np.zeros(1, np.float32), device)  # makes the context, not counted
            self._meter = MemoryMeter(device)
        with tempfile.TemporaryDirectory(prefix="tbn_tvm_") as folder:
            path = Path(folder) / _LIBRARY
            path.write_bytes(self.library)
            # The library stays mapped after its file is gone.
            with giving_code(self.device_code):
                module = tvm.runtime.load_module(str(path))
        machine = relax.VirtualMachine(module, device)
        constants = [tvm.runtime.tensor(array, device) for array in self.constants]
        return machine["main"], constants

    def _check_versions(self) -> None:
        """The library calls into TVM: another version's may lay its data out differently."""
        for key, distribution in (("tvm", "apache-tvm"), ("tvm_ffi", "apache-tvm-ffi")):
            compiled, present = self.versions.get(key), installed(distribution)
            if compiled != present:
                raise ArtifactError(
                    f"{self.name} was compiled with {distribution} {compiled}, and {present} is "
                    "installed: compile the model again, or install that version"
                )

    # -- file -------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike) -> Path:
        """Write the artifact to one file; an existing file is replaced only once it is whole.

        Returns
        -------
        pathlib.Path
            The file.

        Raises
        ------
        UsageError
            Where the path is a folder.
        """
        path = Path(path)
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; an artifact is a file")
        constants = io.BytesIO()
        np.savez(constants, **_named(self.constants))
        members = {_LIBRARY: self.library, _CONSTANTS: constants.getvalue()}
        members |= {_device_member(key): code for key, code in self.device_code.items()}
        manifest = {
            "format": "tbn-tvm artifact",
            "schema": SCHEMA,
            "name": self.name,
            "target": self.target,
            "versions": self.versions,
            **self.signature.to_dict(),
            "layers": self.layers,
            "constants": [str(array.dtype) for array in self.constants],
            "memory": self.memory,
            "max_batch": self.max_batch,
            "device_code": sorted(self.device_code),
            "members": {name: hashlib.sha256(data).hexdigest() for name, data in members.items()},
        }
        manifest["content_hash"] = content_hash(manifest)
        members = {_MANIFEST: json.dumps(manifest, indent=1).encode(), **members}
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".tbn-", delete=False) as file:
            try:
                with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                    for name, data in members.items():
                        # A fixed date: the same model gives the same file.
                        archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
                file.flush()
                os.chmod(file.name, 0o666 & ~_umask())
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> Artifact:
        """Read an artifact.

        Raises
        ------
        ArtifactError
            Where the file is missing, no artifact, damaged, or of a newer schema.
        """
        path = Path(path)
        try:
            manifest, members = _read(path)
            return cls(
                name=manifest["name"],
                target=manifest["target"],
                signature=Signature.from_dict(manifest),
                library=members[_LIBRARY],
                constants=_constants(members[_CONSTANTS], manifest.get("constants")),
                layers=manifest["layers"],
                versions=manifest["versions"],
                memory=manifest.get("memory", {}),
                max_batch=manifest.get("max_batch"),
                device_code={
                    key: members[_device_member(key)] for key in manifest.get("device_code", [])
                },
            )
        except ArtifactError:
            raise
        except Exception as error:  # undamaged, so of another writer
            raise ArtifactError(
                f"{path}: its {_MANIFEST} does not describe an artifact ({type(error).__name__}: "
                f"{error}); {_REBUILD}"
            ) from None


@dataclass(frozen=True)
class PreparedRun:
    """A model with its inputs, as :meth:`Artifact.prepare` makes it.

    Call it for the outputs as NumPy arrays; :meth:`run` leaves them with TVM, which is what a
    benchmark times.
    """

    entry: Callable
    operands: tuple
    device: tvm.runtime.Device
    meter: MemoryMeter | None = None

    def run(self):
        """Run once; TVM's tensor, or an array of them. On a GPU it may still be at work."""
        return self.entry(*self.operands)

    def __call__(self):
        result = self.run()
        if self.meter is not None:
            self.meter.sample()
        outputs = (result,) if hasattr(result, "numpy") else tuple(result)
        arrays = tuple(tensor.numpy() for tensor in outputs)
        return arrays[0] if len(arrays) == 1 else arrays


def is_artifact(path: str | os.PathLike) -> bool:
    """Whether a file calls itself an artifact; it may still be damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _MANIFEST in archive.namelist()
    except Exception:  # zipfile raises many kinds on damaged input
        return False


def _read(path: Path) -> tuple[dict, Mapping[str, bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ArtifactError(f"{path}: is a folder, not an artifact file") from None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # zipfile raises many kinds on damaged input
        raise ArtifactError(
            f"{path}: not an artifact, or truncated or damaged ({error}); {_REBUILD}"
        ) from None
    try:
        manifest = json.loads(members[_MANIFEST])
        schema = manifest["schema"]
        if manifest["format"] != "tbn-tvm artifact":
            raise KeyError("format")
    except (KeyError, TypeError, ValueError):
        raise ArtifactError(
            f"{path}: a zip archive, but not a tbn-tvm artifact (no valid {_MANIFEST}); {_REBUILD}"
        ) from None
    if not isinstance(schema, int) or schema > SCHEMA:
        raise ArtifactError(
            f"{path}: schema {schema} is newer than {SCHEMA}, the newest this version reads; "
            "update tbn-tvm, or compile the model again with this version"
        )
    if manifest.get("content_hash") != content_hash(manifest):
        raise ArtifactError(f"{path}: the manifest was altered; {_REBUILD}")
    digests = manifest["members"]
    for name in (_LIBRARY, _CONSTANTS, *map(_device_member, manifest.get("device_code", []))):
        if hashlib.sha256(members.get(name, b"")).hexdigest() != digests.get(name):
            raise ArtifactError(f"{path}: its part {name} is damaged or was altered; {_REBUILD}")
    return manifest, members


def _device_member(key: str) -> str:
    return f"device/{key}.fatbin"


def _named(constants: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Constants by names in their order; NumPy's files do not know all dtypes TVM has."""
    return {
        f"c{index:05d}": array if array.dtype.kind != "V" else array.view(f"u{array.itemsize}")
        for index, array in enumerate(constants)
    }


def _constants(data: bytes, dtypes: Sequence[str] | None) -> tuple[np.ndarray, ...]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        found = [arrays[name] for name in sorted(arrays.files)]
    if dtypes is None:  # by a writer that had none but NumPy's own
        return tuple(found)
    if any(dtype not in np.sctypeDict for dtype in dtypes):
        import ml_dtypes  # noqa: F401  (teaches NumPy bfloat16)
    return tuple(
        array if str(array.dtype) == dtype else array.view(dtype)
        for array, dtype in zip(found, dtypes, strict=True)
    )


def content_hash(manifest: dict) -> str:
    """SHA-256 of a manifest without its own digest; it names the digests of what it describes."""
    content = {key: value for key, value in manifest.items() if key != "content_hash"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
