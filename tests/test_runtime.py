"""Artifacts: what was saved is what loads, and everything else is refused."""

import hashlib
import io
import json
import os
import random
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

import tbn_tvm
from tbn_tvm.errors import ArtifactError, InputError, UsageError
from tbn_tvm.nn import TiledLinear, freeze
from tbn_tvm.runtime import SCHEMA, Artifact, is_artifact


@pytest.fixture(scope="module")
def module() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = TiledLinear(12, 8, p=4), torch.nn.ReLU(), TiledLinear(8, 5, p=2)
    return freeze(torch.nn.Sequential(*layers))


@pytest.fixture(scope="module")
def program(module) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=4096)
    return torch.export.export(module, (torch.zeros(2, 12),), dynamic_shapes=({0: batch},))


@pytest.fixture(scope="module")
def artifact(program) -> Artifact:
    return tbn_tvm.compile(program, "llvm", name="tiny")


@pytest.fixture(scope="module")
def saved(artifact, tmp_path_factory) -> bytes:
    """The bytes of the artifact's file."""
    return artifact.save(tmp_path_factory.mktemp("saved") / "tiny.tbn").read_bytes()


@pytest.fixture
def path(saved, tmp_path):
    """A file of its own for each test to damage."""
    file = tmp_path / "tiny.tbn"
    file.write_bytes(saved)
    return file


def batch(size: int) -> np.ndarray:
    return np.random.default_rng(size).standard_normal((size, 12)).astype(np.float32)


def content(artifact: Artifact) -> tuple:
    return (
        (artifact.name, artifact.target, artifact.signature, artifact.library),
        [(str(array.dtype), array.shape, array.tobytes()) for array in artifact.constants],
        (artifact.layers, artifact.versions),
    )


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive(parts: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, data in parts.items():
            made.writestr(name, data)
    return file.getvalue()


def with_manifest(data: bytes, changes: dict, rehash: bool) -> bytes:
    """The file with entries of its manifest changed, with or without the digest that fits."""
    parts = members(data)
    manifest = {**json.loads(parts["manifest.json"]), **changes}
    if rehash:
        del manifest["content_hash"]
        text = json.dumps(manifest, sort_keys=True)
        manifest["content_hash"] = hashlib.sha256(text.encode()).hexdigest()
    return archive({**parts, "manifest.json": json.dumps(manifest).encode()})


# -- whole files -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_artifact_computes_what_the_module_computes(artifact, module, size):
    x = batch(size)
    np.testing.assert_allclose(artifact.run(x), module(torch.from_numpy(x)).numpy(), atol=1e-5)


def test_a_loaded_artifact_is_the_saved_one(artifact, path):
    loaded = Artifact.load(path)
    assert content(loaded) == content(artifact)
    np.testing.assert_array_equal(loaded.run(batch(3)), artifact.run(batch(3)))


def test_inputs_bind_by_position_name_or_mapping(artifact):
    x = batch(2)
    expected = artifact.run(x)
    np.testing.assert_array_equal(artifact.run(input=x), expected)
    np.testing.assert_array_equal(artifact.run({"input": x}), expected)


def test_inputs_are_checked_before_the_model_runs(artifact):
    with pytest.raises(InputError, match=r"expected \(batch, 12\)"):
        artifact.run(np.zeros((2, 11), np.float32))


def test_saving_makes_missing_folders_and_leaves_nothing_else(artifact, tmp_path):
    file = artifact.save(tmp_path / "new" / "folder" / "tiny.tbn")
    assert [entry.name for entry in file.parent.iterdir()] == ["tiny.tbn"]


def test_the_same_content_gives_the_same_file(artifact, saved, tmp_path):
    assert artifact.save(tmp_path / "again").read_bytes() == saved


def test_compiling_again_gives_the_same_manifest(artifact, program, saved, tmp_path):
    # Linkers may vary the library, so that of the first compilation stands in for the second's.
    again = replace(tbn_tvm.compile(program, "llvm", name="tiny"), library=artifact.library)
    manifests = [members(data)["manifest.json"] for data in (saved, _save(again, tmp_path))]
    assert manifests[0] == manifests[1]
    assert len(json.loads(manifests[0])["content_hash"]) == 64


def _save(artifact: Artifact, folder) -> bytes:
    return artifact.save(folder / "saved.tbn").read_bytes()


def test_other_weights_give_another_hash(artifact, saved, tmp_path):
    first, *rest = artifact.constants
    changed = replace(artifact, constants=(np.flip(first), *rest))
    assert not np.array_equal(np.flip(first), first)
    hashes = [
        json.loads(members(data)["manifest.json"])["content_hash"]
        for data in (saved, _save(changed, tmp_path))
    ]
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize(("owner", "function"), [(zipfile.ZipFile, "writestr"), (os, "replace")])
def test_a_failure_while_writing_keeps_the_previous_file(
    artifact, path, saved, owner, function, monkeypatch
):
    def fail(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(owner, function, fail)
    with pytest.raises(OSError, match="No space left"):
        replace(artifact, name="other").save(path)
    assert path.read_bytes() == saved
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_saving_over_a_folder_is_refused(artifact, tmp_path):
    with pytest.raises(UsageError, match="is a folder"):
        artifact.save(tmp_path)
    assert not list(tmp_path.iterdir())


# -- damaged files ---------------------------------------------------------------------------


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="no such file"):
        Artifact.load(tmp_path / "none.tbn")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="is a folder"):
        Artifact.load(tmp_path)


@pytest.mark.parametrize(
    "data",
    [b"", b"PK", b"\x7fELF and so on", archive({}), archive({"manifest.json": b"[]"})],
    ids=["empty", "two bytes", "no zip", "empty zip", "manifest of another format"],
)
def test_what_is_no_artifact_is_refused(tmp_path, data):
    file = tmp_path / "other"
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"not an? (tbn-tvm )?artifact"):
        Artifact.load(file)


@pytest.mark.parametrize("part", range(30))
def test_a_truncated_file_is_refused(path, saved, part):
    path.write_bytes(saved[: len(saved) * part // 30])
    with pytest.raises(ArtifactError):
        Artifact.load(path)
    assert not is_artifact(path)


def test_a_file_cut_by_one_byte_is_refused(path, saved):
    path.write_bytes(saved[:-1])
    with pytest.raises(ArtifactError):
        Artifact.load(path)


def _offsets(data: bytes) -> list[int]:
    """Every byte of the zip's own structure, and a sample of what it holds."""
    start = data.rindex(b"PK\x05\x06")
    directory = int.from_bytes(data[start + 16 : start + 20], "little")
    headers = [at for at in range(directory) if data.startswith(b"PK\x03\x04", at)]
    structure = {at + i for at in headers for i in range(48)} | set(range(directory, len(data)))
    return sorted(structure | set(random.Random(0).sample(range(len(data)), 300)))


def test_a_flipped_bit_is_refused_or_harmless(path, saved):
    original = content(Artifact.load(path))
    refused = 0
    for offset in _offsets(saved):
        for bit in (0, 3, 7):
            damaged = bytearray(saved)
            damaged[offset] ^= 1 << bit
            path.write_bytes(damaged)
            is_artifact(path)
            try:
                loaded = Artifact.load(path)
            except ArtifactError:
                refused += 1
                continue
            # The bit was one that zip ignores: a date, say.
            assert content(loaded) == original, f"bit {bit} of byte {offset}"
    assert refused > 900


@pytest.mark.parametrize("name", ["manifest.json", "library.so", "constants.npz"])
def test_a_removed_part_is_refused(path, saved, name):
    parts = members(saved)
    del parts[name]
    path.write_bytes(archive(parts))
    with pytest.raises(ArtifactError, match=name):
        Artifact.load(path)


@pytest.mark.parametrize("name", ["library.so", "constants.npz"])
def test_a_replaced_part_is_refused(path, saved, name):
    path.write_bytes(archive({**members(saved), name: b"something else"}))
    with pytest.raises(ArtifactError, match=f"its part {name} is damaged or was altered"):
        Artifact.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": [{"name": "x", "shape": ["batch", 12], "dtype": "float32"}]},
        {"name": "other"},
        {"members": {}},
        {"content_hash": None},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_altered_manifest_is_refused(path, saved, changes):
    path.write_bytes(with_manifest(saved, changes, rehash=False))
    with pytest.raises(ArtifactError, match="manifest was altered"):
        Artifact.load(path)


@pytest.mark.parametrize("rehash", [True, False])
def test_a_newer_schema_is_refused_with_what_to_do(path, saved, rehash):
    path.write_bytes(with_manifest(saved, {"schema": SCHEMA + 1}, rehash))
    with pytest.raises(ArtifactError, match="update tbn-tvm, or compile the model again"):
        Artifact.load(path)


@pytest.mark.parametrize(
    "changes",
    [{"inputs": None}, {"outputs": [{}]}, {"members": {}}, {"members": 7}],
    ids=repr,
)
def test_a_manifest_with_the_right_hash_must_still_make_sense(path, saved, changes):
    path.write_bytes(with_manifest(saved, changes, rehash=True))
    with pytest.raises(ArtifactError):
        Artifact.load(path)


@pytest.mark.parametrize("part", ["tvm", "tvm_ffi"])
def test_an_artifact_of_another_tvm_is_read_but_not_run(artifact, part):
    other = replace(artifact, versions={**artifact.versions, part: "0.1.2"})
    with pytest.raises(ArtifactError, match=r"compiled with .* 0\.1\.2, and .* is installed"):
        other.run(batch(1))
