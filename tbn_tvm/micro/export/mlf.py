"""A Model Library Format archive, version 7, as microTVM wrote them (TVM 0.10 to 0.18).

What is in it has microTVM's names and places: ``metadata.json``, ``codegen/host/include`` with
``tvmgen_<model>.h``, ``codegen/host/src``, ``parameters`` and ``src``. TVM's C run time is not in
it, since nothing needs it; ``src`` holds Relax, and ``runtime-config.json``, which microTVM did not
have for compiled-ahead models, what a build has to know.

No microTVM is left to read it (TVM 0.27 has none): names and places follow its last source.
"""

from __future__ import annotations

import datetime
import io
import json
import os
import tarfile
from pathlib import Path

from tbn_tvm.micro.export.facts import Facts, TensorFacts

FORMAT_VERSION = 7
"""Of TVM's ``model_library_format.py``."""

_CPU = 1
"""DLPack's number of the device type."""


def files(facts: Facts) -> dict[str, bytes]:
    """The archive's files by path."""
    name, host = facts.name, "codegen/host"
    return {
        "metadata.json": _json(_metadata(facts)),
        "runtime-config.json": _json(_runtime_config(facts)),
        f"{host}/include/tvmgen_{name}.h": facts.render("mlf/tvmgen.h.jinja"),
        f"{host}/include/{name}.h": facts.header.encode(),
        f"{host}/src/{name}_lib0.c": facts.source.encode(),
        **facts.beside(f"{host}/src/"),
        f"{host}/src/{name}_lib1.c": facts.render("mlf/tvmgen.c.jinja"),
        f"parameters/{name}.params": _parameters(facts),
        f"src/{name}.relax": facts.lowered.model.mod.script(show_meta=False).encode(),
    }


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    """Write a tar file; an existing one is replaced only once the new one is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    folders = sorted({str(folder) for name in files for folder in Path(name).parents})
    when = int(_now().timestamp())
    try:
        with tarfile.open(partial, "w") as archive:
            for folder in folders:
                entry = tarfile.TarInfo("." if folder == "." else f"./{folder}")
                entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, when
                archive.addfile(entry)
            for name, data in files.items():
                entry = tarfile.TarInfo(f"./{name}")
                entry.size, entry.mode, entry.mtime = len(data), 0o644, when
                archive.addfile(entry, io.BytesIO(data))
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return path


def _metadata(facts: Facts) -> dict:
    lowered = facts.lowered
    program = lowered.program
    scratch = {
        kernel.name: sum(nbytes for nbytes, _alignment in kernel.scratch)
        for kernel in program.kernels
    }
    return {
        "version": FORMAT_VERSION,
        "modules": {
            facts.name: {
                "model_name": facts.name,
                "export_datetime": _now().strftime("%Y-%m-%d %H:%M:%SZ"),
                "memory": {
                    "functions": {
                        "main": [
                            {
                                "device": _CPU,
                                "workspace_size_bytes": lowered.memory["arena"],
                                "constants_size_bytes": lowered.memory["weights"],
                                "io_size_bytes": sum(t.bytes for t in facts.inputs + facts.outputs),
                                "inputs": _sizes(facts.inputs),
                                "outputs": _sizes(facts.outputs),
                            }
                        ],
                        "operator_functions": [
                            {
                                "function_name": name,
                                "workspace": [{"device": _CPU, "workspace_size_bytes": nbytes}],
                            }
                            for name, nbytes in scratch.items()
                        ],
                    }
                },
                "target": [_target(facts)],
                "executors": ["aot"],
                "style": "full-model",
            }
        },
    }


def _runtime_config(facts: Facts) -> dict:
    """How to build and call what is in the archive."""
    return {
        "executor": "aot",
        "interface_api": "c",
        "entry": f"tvmgen_{facts.name}_run",
        "header": f"codegen/host/include/tvmgen_{facts.name}.h",
        "include": ["codegen/host/include"],
        "sources": [f"codegen/host/src/{facts.name}_lib{index}.c" for index in range(2)],
        "workspace_size_bytes": facts.lowered.memory["arena"],
        "flags": list(facts.board.cpu_flags) if facts.board else [],
        "quantization": facts.lowered.quantization and facts.lowered.quantization.to_dict(),
        "versions": facts.versions,
    }


def _parameters(facts: Facts) -> bytes:
    """The constants by their names in C, in the form that ``tvm.runtime`` loads."""
    import tvm

    return bytes(
        tvm.runtime.save_param_dict(
            {
                constant.name: tvm.runtime.tensor(constant.data)
                for constant in facts.lowered.program.constants
            }
        )
    )


def _target(facts: Facts) -> str:
    if facts.board is None:
        return "c -keys=cpu"
    return f"c -keys=arm_cpu,cpu -mcpu={_cpu(facts.board.cpu_flags)}"


def _cpu(flags: tuple[str, ...]) -> str:
    named = (flag.removeprefix("-mcpu=") for flag in flags if flag.startswith("-mcpu="))
    return next(named, "generic")


def _sizes(tensors: list[TensorFacts]) -> dict:
    return {tensor.identifier: {"size": tensor.bytes, "dtype": tensor.dtype} for tensor in tensors}


def _now() -> datetime.datetime:
    """The time of the export; ``SOURCE_DATE_EPOCH`` makes archives reproducible."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
    if fixed.isdecimal():
        return datetime.datetime.fromtimestamp(int(fixed), datetime.timezone.utc)
    return datetime.datetime.now(datetime.timezone.utc)


def _json(fields: dict) -> bytes:
    return (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode()
