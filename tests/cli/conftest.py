"""A folder of good and damaged files, for tests of how bad input is told."""

import json
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import tbn_tvm
from tbn_tvm.nn import TiledLinear, freeze

BOARD = "mps2-an386"
FACTORIES = """
import torch


class Branching(torch.nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Fourier(torch.nn.Module):
    def forward(self, x):
        return torch.fft.fft(x).abs()


def raises():
    raise RuntimeError("no weights here")


def nonsense():
    return {"model": 1}


def needs_an_argument(path):
    return path


def branching():
    return Branching(), (torch.zeros(3),)


def fourier():
    return Fourier(), (torch.zeros(3),)


number = 7
"""


def export(model: torch.nn.Module) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=4096)
    return torch.export.export(model, (torch.zeros(2, 12),), dynamic_shapes=({0: batch},))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A folder with a good model, artifact, project and input, and with many bad ones."""
    folder = tmp_path_factory.mktemp("prepared")
    torch.manual_seed(0)
    model = freeze(torch.nn.Sequential(TiledLinear(12, 8, p=4), TiledLinear(8, 5, p=2)))
    program = export(model)
    torch.export.save(program, folder / "tiny.pt2")
    tbn_tvm.compile(program, name="tiny").save(folder / "tiny.tbn")
    tbn_tvm.compile(program, BOARD, name="tiny").save(folder / "project")
    np.save(folder / "x.npy", np.zeros((2, 12), np.float32))
    _write_bad_models(folder, model)
    _write_bad_artifacts(folder)
    _write_bad_inputs(folder)
    _write_bad_projects(folder)
    return folder


def _write_bad_models(folder: Path, model: torch.nn.Module) -> None:
    whole = (folder / "tiny.pt2").read_bytes()
    (folder / "text.pt2").write_text("this is no model\n" * 20)
    (folder / "empty.pt2").touch()
    (folder / "truncated.pt2").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "broken.py").write_text("import nothing_of_this_name\n")
    (folder / "wrong_syntax.py").write_text("def make(:\n")
    (folder / "factories.py").write_text(FACTORIES)
    with zipfile.ZipFile(folder / "zip.pt2", "w") as archive:
        archive.writestr("readme", "an archive of something else")
    torch.save(model.state_dict(), folder / "weights.pt2")
    model[0].alpha[1] = torch.nan
    torch.export.save(export(model), folder / "nan.pt2")


def _write_bad_artifacts(folder: Path) -> None:
    whole = (folder / "tiny.tbn").read_bytes()
    (folder / "truncated.tbn").write_bytes(whole[: len(whole) // 2])
    with zipfile.ZipFile(folder / "tiny.tbn") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    altered = {**parts, "library.so": parts["library.so"][:-1] + b"?"}
    manifest = json.loads(parts["manifest.json"])
    newer = {**parts, "manifest.json": json.dumps({**manifest, "schema": 2}).encode()}
    for name, content in (("altered", altered), ("newer", newer)):
        with zipfile.ZipFile(folder / f"{name}.tbn", "w") as archive:
            for part, data in content.items():
                archive.writestr(part, data)


def _write_bad_inputs(folder: Path) -> None:
    x = np.random.default_rng(0).random((50, 12), np.float32)
    np.save(folder / "wide.npy", np.zeros((2, 13), np.float32))
    np.save(folder / "double.npy", np.zeros((2, 12)))
    np.save(folder / "none.npy", np.zeros((0, 12), np.float32))
    np.save(folder / "objects.npy", np.array([{}]), allow_pickle=True)
    np.savez(folder / "other_name.npz", pixels=x)
    np.savez(folder / "labels_only.npz", labels=np.zeros(2, np.int64))
    np.savez_compressed(folder / "whole.npz", input=x)
    whole = bytearray((folder / "whole.npz").read_bytes())
    (folder / "truncated.npz").write_bytes(whole[: len(whole) // 2])
    for offset in range(300, 400):
        whole[offset] ^= 0xFF
    (folder / "damaged.npz").write_bytes(whole)
    (folder / "truncated.npy").write_bytes((folder / "x.npy").read_bytes()[:-5])
    (folder / "text.npz").write_text("1 2 3\n")
    (folder / "empty.npz").touch()


def _write_bad_projects(folder: Path) -> None:
    def copy(name: str) -> Path:
        return shutil.copytree(folder / "project", folder / name)

    path = copy("altered_code") / "tiny.c"
    path.write_text(path.read_text() + "\n")
    (copy("missing_code") / "device" / "tbn_server.c").unlink()
    (copy("no_metadata") / "metadata.json").write_text("{")
    metadata = json.loads((folder / "project" / "metadata.json").read_text())
    for name, changes in (
        ("newer_project", {"schema": 2}),
        ("altered_metadata", {"name": "other"}),
        ("less_metadata", {"files": None}),
        ("foreign", {"format": "Model Library Format"}),
    ):
        (copy(name) / "metadata.json").write_text(json.dumps({**metadata, **changes}))
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("keep me")


@pytest.fixture
def cwd(prepared, monkeypatch) -> Path:
    """The prepared folder as the working directory; the test must leave it as it was."""
    monkeypatch.chdir(prepared)
    # Importing a factory leaves its byte code, which is not ours to forbid.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = listing(prepared)
    yield prepared
    assert listing(prepared) == before


def listing(folder: Path) -> list[tuple]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
