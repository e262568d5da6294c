"""Where a board's memory goes: flash and RAM a layer and in total, the stack, the arena's map.

What the plan says is known as soon as a model is lowered; code, and what the linker makes of all of
it, comes from the ELF file.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from tbn_tvm.errors import ArtifactError

if TYPE_CHECKING:
    from tbn_tvm.micro.build import BuildReport
    from tbn_tvm.micro.lower import Lowered
    from tbn_tvm.micro.program import Buffer
    from tbn_tvm.micro.project import Project

REPORT = "build/memory.json"
"""Where a project keeps its report."""


# -- the plan --------------------------------------------------------------------------------


def planned_memory(lowered: Lowered) -> dict:
    """What is known of a model's memory before it is compiled, for a project's metadata.

    Returns
    -------
    dict
        ``weights``, ``arena``, ``arena_lower_bound`` and ``io`` in bytes; ``layers``, a row a
        layer with its kernels and constants, and bytes of weights, scratch (what its steps need
        beside what they read and the layer's output), output, and of the arena at its fullest
        step; ``steps`` and ``buffers``, the arena's map.
    """
    program, plan = lowered.program, lowered.plan
    labels = step_labels(lowered)
    last = {label: index for index, label in enumerate(labels)}
    constants = {constant.name: constant for constant in program.constants}
    buffers = {buffer.name: buffer for buffer in program.buffers}
    made = {b.name: labels[b.first] for b in program.buffers if 0 <= b.first < len(labels)}
    rows = {
        label: {
            "layer": label,
            "kernels": [],
            "constants": [],
            "weights": 0,
            "scratch": 0,
            "output": 0,
            "arena": 0,
        }
        for label in labels
    }
    owned: set[str] = set()
    for index, (step, label) in enumerate(zip(program.steps, labels, strict=True)):
        row = rows[label]
        if step.kernel not in owned:
            row["kernels"].append(step.kernel)
        for name in step.arguments:
            if name in constants and name not in owned:
                row["constants"].append(name)
                row["weights"] += constants[name].data.nbytes
        owned |= {step.kernel, *step.arguments}
        results = {b.name for b in buffers.values() if b.first == index and b.last > index}
        if index == last[label]:
            row["output"] = sum(buffers[name].nbytes for name in results)
        inner = [
            buffer.nbytes
            for buffer in alive(lowered, index)
            if made.get(buffer.name) == label
            and not (index == last[label] and buffer.name in results)
        ]
        row["scratch"] = max(row["scratch"], sum(inner))
        row["arena"] = max(row["arena"], sum(b.nbytes for b in alive(lowered, index)))
    return {
        **lowered.memory,
        "layers": list(rows.values()),
        "steps": [
            {"kernel": step.kernel, "layer": label, "results": program.results(index)}
            for index, (step, label) in enumerate(zip(program.steps, labels, strict=True))
        ],
        "buffers": [
            {
                "name": buffer.name,
                "offset": plan.offsets.get(buffer.name),
                "nbytes": buffer.nbytes,
                "first": buffer.first,
                "last": buffer.last,
                "over": plan.in_place.get(buffer.name),
            }
            for buffer in program.buffers
        ],
    }


def alive(lowered: Lowered, step: int) -> list[Buffer]:
    """The arena's buffers at a step, the largest first; of two in one place, the later."""
    over = lowered.plan.in_place
    there = [
        buffer
        for buffer in lowered.program.buffers
        if buffer.name in lowered.plan.offsets and buffer.first <= step <= buffer.last
    ]
    gone = {over[buffer.name] for buffer in there if buffer.name in over}
    return sorted((b for b in there if b.name not in gone), key=lambda buffer: -buffer.nbytes)


def fullest_step(lowered: Lowered) -> list[Buffer]:
    """The buffers of the step where their sum is largest, the largest first."""
    steps = range(-1, len(lowered.program.steps) + 1)
    return max(
        (alive(lowered, step) for step in steps), key=lambda there: sum(b.nbytes for b in there)
    )


def step_labels(lowered: Lowered) -> list[str]:
    """The layer that each step belongs to.

    A tiled layer's product is one, and both keep their order; a layer of floats is known by the
    size of its weights. What follows belongs to the layer whose results it reads, and what comes
    before any layer goes by its kernel's name.
    """
    program = lowered.program
    tiled = [layer.name for layer in lowered.model.layers if layer.p is not None]
    floats = [layer for layer in lowered.model.layers if layer.p is None]
    if len(tiled) != sum(step.product for step in program.steps):
        tiled = []
    sizes = {c.name: c.data.size for c in program.constants if c.data.dtype.kind == "f"}
    names, labels = iter(tiled), []
    made: dict[str, tuple[int, str]] = {}
    for index, step in enumerate(program.steps):
        label = next(names, "") if step.product else ""
        if not label and floats:
            wanted = math.prod(floats[0].shape)
            if any(sizes.get(name) == wanted for name in step.arguments):
                label = floats.pop(0).name
        if not label:
            _, label = max((made[name] for name in step.arguments if name in made), default=(0, ""))
        labels.append(label or step.kernel.removeprefix(f"{lowered.model.name}_"))
        for buffer in program.buffers:
            if buffer.first == index and label:
                made[buffer.name] = index, label
    return labels


# -- with the firmware -----------------------------------------------------------------------


def memory_report(project: Project, built: BuildReport | None = None) -> dict:
    """The whole report.

    Parameters
    ----------
    project : Project
        What was planned.
    built : BuildReport, optional
        Of its firmware; without it code and totals are None.

    Returns
    -------
    dict
        ``flash``, ``ram`` and ``stack`` in bytes, ``layers``, and ``arena``. The parts of
        ``flash`` and ``ram`` add up to their ``total``, and so do the layers' ``weights`` and
        ``code`` to the parts of that name.

    Raises
    ------
    ArtifactError
        Where the project was made before there were reports.
    """
    memory, board = project.memory, project.board
    if "layers" not in memory:
        raise ArtifactError("the project is of an older version: compile the model again")
    flash: dict = {"total": None, "available": board.flash_bytes, "weights": memory["weights"]}
    ram: dict = {
        "total": None,
        "available": board.ram_bytes,
        "arena": memory["arena"],
        "io": memory["io"],
        "stack_reserved": board.stack_bytes,
    }
    layers = [
        {
            "layer": row["layer"],
            "weights": row["weights"],
            "code": None,
            **{key: row[key] for key in ("scratch", "output", "arena")},
        }
        for row in memory["layers"]
    ]
    if built is not None:
        sizes = _Sizes.read(Path(built.elf), project)
        for row, planned in zip(layers, memory["layers"], strict=True):
            row["weights"] = sum(sizes.constants.get(name, 0) for name in planned["constants"])
            row["code"] = sum(sizes.kernels.get(name, 0) for name in planned["kernels"])
        flash |= {
            "total": built.flash,
            "weights": sum(row["weights"] for row in layers),
            "code": sum(row["code"] for row in layers),
            "entry": sizes.entry,
            "firmware": sizes.firmware,
            "library": sizes.library,
        }
        parts = ("weights", "code", "entry", "firmware", "library")
        flash["tables_and_alignment"] = built.flash - sum(flash[part] for part in parts)
        ram |= {"total": built.ram, "arena": built.arena, "io": sizes.io}
        ram["firmware"] = built.ram - built.arena - sizes.io
    return {
        "model": project.name,
        "board": board.name,
        "built": built is not None,
        "flash": flash,
        "ram": ram,
        "stack": None if built is None else built.stack.to_dict(),
        "layers": layers,
        "arena": {
            "nbytes": memory["arena"],
            "lower_bound": memory["arena_lower_bound"],
            "steps": memory["steps"],
            "buffers": memory["buffers"],
        },
    }


def save_report(folder: str | Path, report: dict) -> Path:
    """Write a report into a project's folder; compiling again removes it."""
    path = Path(folder) / REPORT
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


class _Sizes:
    """Sizes of a firmware's symbols, sorted by what they belong to.

    Attributes
    ----------
    constants, kernels : dict of str to int
        The model's, by name in the program.
    entry, firmware, library : int
        Code of the model's other functions; of the rest that is compiled with it; of what comes
        with the compiler.
    io : int
        Buffers of inputs and outputs outside the arena.
    """

    def __init__(self) -> None:
        self.constants: dict[str, int] = {}
        self.kernels: dict[str, int] = {}
        self.entry = self.firmware = self.library = self.io = 0

    @classmethod
    def read(cls, elf: Path, project: Project) -> _Sizes:
        """From the symbol table; what lies under several names counts once."""
        from elftools.elf.elffile import ELFFile

        from tbn_tvm.micro.stack import read_usage

        memory, found = project.memory, cls()
        compiled = read_usage(elf.parent)
        kernels = {name for row in memory["layers"] for name in row["kernels"]}
        constants = {name for row in memory["layers"] for name in row["constants"]}
        tensors = [*project.signature.inputs, *project.signature.outputs]
        entries = {f"{project.name}_run"}
        entries |= {
            f"{project.name}_{kind}_{t.name}" for t in tensors for kind in ("input", "output")
        }
        with elf.open("rb") as file:
            symbols = [
                (symbol["st_value"], symbol["st_size"], symbol["st_info"]["type"], symbol.name)
                for symbol in ELFFile(file).get_section_by_name(".symtab").iter_symbols()
                if symbol["st_info"]["type"] in ("STT_FUNC", "STT_OBJECT")
            ]
        # Functions of the library have several names, and some lie inside others.
        end = 0
        for start, whole, kind, full in sorted(symbols, key=lambda s: (s[0] & ~1, -s[1])):
            start &= ~1
            size = max(0, start + whole - max(start, end))
            end = max(end, start + whole)
            # The compiler's copies of a function are called name.what.number.
            name = full.partition(".")[0]
            if kind == "STT_OBJECT":
                if name in constants:
                    found.constants[name] = found.constants.get(name, 0) + size
                elif name.startswith("buffer_") and name.removeprefix("buffer_").isdigit():
                    found.io += size
            elif name in kernels:
                found.kernels[name] = found.kernels.get(name, 0) + size
            elif name in entries:
                found.entry += size
            elif name in compiled or full.rstrip("0123456789").rstrip(".") in compiled:
                found.firmware += size
            else:
                found.library += size
        return found


# -- tables ----------------------------------------------------------------------------------

COLUMNS = ("layer", "weights", "code", "scratch", "output", "arena, fullest step")


def layer_rows(report: dict) -> list[tuple]:
    """A row a layer for a table of ``COLUMNS``, in bytes."""
    return [
        (
            row["layer"],
            row["weights"],
            "-" if row["code"] is None else row["code"],
            row["scratch"],
            row["output"],
            row["arena"],
        )
        for row in report["layers"]
    ]


def total_rows(report: dict) -> list[tuple[str, int | str]]:
    """Names and figures of everything else; parts are indented below their total."""
    flash, ram, stack, arena = (report[key] for key in ("flash", "ram", "stack", "arena"))
    if not report["built"]:
        return [
            ("weights in flash", flash["weights"]),
            *_io_rows(ram["io"]),
            ("arena in RAM", ram["arena"]),
            ("  its lower bound", arena["lower_bound"]),
            ("stack reserved", ram["stack_reserved"]),
        ]
    return [
        ("flash", flash["total"]),
        ("  weights", flash["weights"]),
        ("  kernels", flash["code"]),
        ("  the model's entry and accessors", flash["entry"]),
        ("  server, drivers, start-up", flash["firmware"]),
        ("  the compiler's library", flash["library"]),
        ("  tables and alignment", flash["tables_and_alignment"]),
        ("static RAM", ram["total"]),
        ("  arena in RAM", ram["arena"]),
        *_io_rows(ram["io"]),
        ("  server and drivers", ram["firmware"]),
        ("arena's lower bound", arena["lower_bound"]),
        ("stack, one inference at most", stack["model"]),
        ("stack, firmware at most", stack["total"]),
        ("  with a fault being reported", stack["with_fault"]),
        ("stack reserved", ram["stack_reserved"]),
    ]


def _io_rows(nbytes: int) -> list[tuple[str, int]]:
    return [("  inputs and outputs", nbytes)] if nbytes else []


def stack_rows(report: dict) -> list[tuple[str, int]]:
    """The deepest path of calls: each function, and the stack it has taken when it calls the next.

    Empty without a firmware.
    """
    return [tuple(entry) for entry in report["stack"]["total_path"]] if report["stack"] else []


def map_rows(report: dict) -> list[tuple]:
    """The arena's map: offset, bytes, first and last step, and whose they are, by offset."""
    placed = [buffer for buffer in report["arena"]["buffers"] if buffer["offset"] is not None]
    return [
        (
            buffer["offset"],
            buffer["nbytes"],
            f"{buffer['first']}..{buffer['last']}",
            buffer["name"] + (f", over {buffer['over']}" if buffer["over"] else ""),
        )
        for buffer in sorted(placed, key=lambda b: (b["offset"], b["first"]))
    ]
