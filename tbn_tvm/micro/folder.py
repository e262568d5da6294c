"""Folders of generated files with a manifest: written whole, replaced file by file."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path


def write_folder(
    folder: Path, files: dict[str, bytes], manifest: str, *, derived: str | None = None
) -> Path:
    """Write a folder, or put its files in the place of those that an older manifest lists.

    Until everything is written, what was there stays; files that no manifest lists stay always.

    Parameters
    ----------
    folder : Path
        Missing, empty, or with a manifest whose entry ``files`` lists what it holds.
    files : dict of str to bytes
        By path relative to the folder, the manifest among them.
    manifest : str
        Its name. It goes last: a folder whose replacement is interrupted differs from it.
    derived : str, optional
        A folder in it, made from the old files, that goes with them.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".tbn-"))
    try:
        made.chmod(0o755)
        for name, data in files.items():
            path = made / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        if folder.is_dir() and any(folder.iterdir()):
            if derived is not None:
                shutil.rmtree(folder / derived, ignore_errors=True)
            _replace(folder, made, list(files), manifest)
        else:
            os.replace(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _replace(folder: Path, made: Path, names: list[str], manifest: str) -> None:
    old = json.loads((folder / manifest).read_text()).get("files", {})
    for name in set(old) - set(names):
        if ".." not in Path(name).parts and not Path(name).is_absolute():
            (folder / name).unlink(missing_ok=True)
    for name in sorted(names, key=lambda name: name == manifest):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(made / name, folder / name)
