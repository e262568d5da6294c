"""``tbn-tvm micro``: boards, firmware, and running it."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tbn_tvm.cli.output import (
    add_json_flag,
    classification,
    load_inputs,
    outputs_by_name,
    print_json,
    print_memory,
    print_table,
    save_outputs,
    shown_classes,
)
from tbn_tvm.errors import ArtifactError, UsageError


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Register the command and its own."""
    parser = commands.add_parser("micro", help="bare-metal boards: list, build, run, profile")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    boards = actions.add_parser("boards", help="list the boards")
    add_json_flag(boards)
    boards.set_defaults(run=run_boards, needs_tvm=False)

    build = actions.add_parser("build", help="cross-compile a project and tell its sizes")
    _add_project(build)
    build.add_argument(
        "--protocol",
        choices=["tbn", "mlperf-tiny", "none"],
        default="tbn",
        help="what the firmware speaks over its UART: tbn (default, for tbn-tvm micro run), the "
        "commands of MLPerf Tiny, or none: it runs the model once and sleeps",
    )
    build.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="FILE.c",
        help="C to add; with --protocol none it may define tbn_before_run and tbn_after_run",
    )
    add_json_flag(build)
    build.set_defaults(run=run_build, needs_tvm=False)

    runner = actions.add_parser("run", help="build a project and run it in the emulator")
    _add_project(runner)
    runner.add_argument("--input", required=True, metavar="FILE", help="as for tbn-tvm run")
    runner.add_argument("--output", metavar="FILE.npz", help="write the outputs")
    runner.add_argument(
        "--timeout", type=_seconds, default=60.0, metavar="S", help="for one inference (60)"
    )
    add_json_flag(runner)
    runner.set_defaults(run=run_run, needs_tvm=False)

    profiler = actions.add_parser(
        "profile",
        help="run a project in the emulator and tell where its time goes",
        description="Instructions a layer, the mean of several runs with a hook at every step. "
        "--compare runs the same steps on this machine and names the first layer that differs.",
    )
    _add_project(profiler)
    profiler.add_argument(
        "--input", metavar="FILE", help="as for tbn-tvm run; random numbers otherwise"
    )
    profiler.add_argument(
        "--compare", action="store_true", help="compare every step's result with this machine's"
    )
    profiler.add_argument("--runs", type=_count, default=8, metavar="N", help="to measure (8)")
    profiler.add_argument(
        "--timeout", type=_seconds, default=60.0, metavar="S", help="for one inference (60)"
    )
    add_json_flag(profiler)
    profiler.set_defaults(run=run_profile, needs_tvm=False)


def _add_project(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "project",
        metavar="DIR|MODEL",
        help="made by tbn-tvm compile --target BOARD, or what that takes, with --board",
    )
    parser.add_argument("--board", metavar="BOARD", help="what to compile MODEL for")
    parser.add_argument(
        "-o", dest="folder", metavar="DIR", help="keep the project compiled from MODEL here"
    )


@contextlib.contextmanager
def _project(args: argparse.Namespace) -> Iterator[str]:
    """The folder of the project that was asked for, which may have to be compiled first."""
    if args.board is None or Path(args.project).is_dir():
        if Path(args.project).is_file():
            raise ArtifactError(
                f"{args.project}: no such folder; to compile a model first, name a --board"
            )
        if args.folder is not None:
            raise UsageError(f"-o {args.folder}: only for what is compiled, with --board BOARD")
        if args.board is not None:
            _check_board(args)
        yield args.project
        return
    from tbn_tvm import compiler
    from tbn_tvm._tvm import check_pair
    from tbn_tvm.micro.project import check_destination
    from tbn_tvm.targets import load_board

    check_pair()
    load_board(args.board)
    name = compiler.default_name(args.project)
    if args.folder is not None:
        check_destination(Path(args.folder))
    with tempfile.TemporaryDirectory(prefix="tbn_tvm_") as temporary:
        compiled = compiler.compile(args.project, args.board, name=name)
        yield str(compiled.save(args.folder or Path(temporary) / name))


def _check_board(args: argparse.Namespace) -> None:
    from tbn_tvm.micro.project import Project
    from tbn_tvm.targets import load_board

    board = Project.load(args.project).board
    if load_board(args.board) != board:
        raise UsageError(f"{args.project}: made for {board.name}, not for {args.board}")


def run_boards(args: argparse.Namespace) -> int:
    """List the boards."""
    from tbn_tvm.targets import board_names, load_board

    boards = [load_board(name) for name in board_names()]
    if args.json:
        print_json(
            {
                "boards": [
                    {
                        "name": board.name,
                        "core": board.core,
                        "architecture": board.architecture,
                        "fpu": board.fpu,
                        "dsp": "dsp" in board.features,
                        "mve": "mve" in board.features,
                        "flash_bytes": board.flash_bytes,
                        "ram_bytes": board.ram_bytes,
                        "clock_hz": board.clock_hz,
                        "emulator_machine": board.emulator_machine,
                        "pyocd_target": board.pyocd_target,
                        "description": board.description,
                    }
                    for board in boards
                ]
            }
        )
        return 0
    print_table(
        "boards",
        ("name", "core", "FPU", "DSP", "MVE", "flash, bytes", "RAM, bytes", "clock, MHz"),
        [
            (
                board.name,
                board.core,
                board.fpu,
                "dsp" in board.features,
                "mve" in board.features,
                board.flash_bytes,
                board.ram_bytes,
                board.clock_hz // 10**6,
            )
            for board in boards
        ],
    )
    return 0


def run_build(args: argparse.Namespace) -> int:
    """Build and report sizes."""
    from tbn_tvm.micro.build import build
    from tbn_tvm.micro.project import Project
    from tbn_tvm.micro.report import memory_report, save_report

    if args.board is not None and args.folder is None and not Path(args.project).is_dir():
        # What is built is to stay: the same folder as of tbn-tvm compile.
        from tbn_tvm.compiler import default_name

        args.folder = f"{default_name(args.project)}-{args.board}"
    with _project(args) as folder:
        report = build(folder, args.protocol, args.source)
        memory = memory_report(Project.load(folder), report)
        save_report(folder, memory)
    if args.json:
        print_json({**report.to_dict(), "memory_report": memory})
    else:
        print_memory(memory)
    return 0


def run_run(args: argparse.Namespace) -> int:
    """Build, run in the emulator, and report outputs, instructions and memory."""
    with _project(args) as folder:
        return _run(args, folder)


def _run(args: argparse.Namespace, folder: str) -> int:
    from rich.console import Console

    from tbn_tvm.micro.project import Project
    from tbn_tvm.micro.session import Session

    project = Project.load(folder)
    inputs, labels = load_inputs(args.input, project.signature)
    # Checked before anything is built: a wrong input is told at once.
    project.signature.bind((inputs,), {})
    with (
        Console(file=sys.stderr).status(f"building and running on {project.board.name}"),
        Session(folder, run_timeout=args.timeout) as session,
    ):
        outputs = outputs_by_name(project.signature, session.run(inputs))
        report, statistics = session.build_report, session.statistics
    if args.output:
        save_outputs(args.output, outputs)
    found = classification(outputs, labels)
    counts = statistics.instructions
    if args.json:
        print_json(
            {
                "project": args.project,
                "board": project.board.name,
                "samples": len(counts),
                "instructions": {
                    "per_inference": sum(counts) / len(counts),
                    "least": min(counts),
                    "most": max(counts),
                },
                "memory": report.to_dict(),
                "stack_used": statistics.stack_used,
                "retries": statistics.retries,
                "outputs": {name: y.tolist() for name, y in outputs.items()},
                **found,
            }
        )
        return 0
    rows = [
        ("samples", len(counts)),
        ("instructions per inference, mean", round(sum(counts) / len(counts))),
        ("instructions per inference, most", max(counts)),
    ]
    if "predictions" in found:
        rows.append(("classes", shown_classes(found["predictions"])))
    if "accuracy" in found:
        rows.append(("accuracy", f"{found['accuracy']:.2%} of {len(found['predictions'])}"))
    rows = [*rows, *_sizes(report), ("stack used since reset, bytes", statistics.stack_used)]
    print_table(f"{project.name} on {project.board.name}", ("", ""), rows)
    return 0


def run_profile(args: argparse.Namespace) -> int:
    """Measure every step, and compare it with this machine's if asked to."""
    with _project(args) as folder:
        return _profile(args, folder)


def _profile(args: argparse.Namespace, folder: str) -> int:
    from rich.console import Console

    from tbn_tvm.micro.profile import profile, random_inputs
    from tbn_tvm.micro.project import Project

    project = Project.load(folder)
    if args.input is None:
        inputs = random_inputs(project.signature)
    else:
        inputs, _labels = load_inputs(args.input, project.signature)
        project.signature.bind((inputs,), {})
    with Console(file=sys.stderr).status(f"building and running on {project.board.name}"):
        found = profile(
            folder, inputs, compare=args.compare, runs=args.runs, run_timeout=args.timeout
        )
    if args.json:
        print_json({"project": args.project, **found.to_dict()})
        return 0
    has_cycles = any(step.cycles is not None for step in found.steps)
    columns = ["layer", "instructions", "%"]
    columns += ["cycles"] * has_cycles + ["largest difference", "relative"] * args.compare
    rows = []
    for row in found.layers():
        cells = [row["layer"], round(row["instructions"])]
        cells.append(f"{100 * row['instructions'] / max(found.instructions, 1):.1f}")
        if has_cycles:
            cells.append(round(row["cycles"]))
        if args.compare:
            cells += [f"{row['difference']:.3g}", f"{row['relative']:.3g}"]
        rows.append(cells)
    empty = [""] * (len(columns) - 3)
    rows.append(["all layers", round(found.instructions), "100.0", *empty])
    print_table(f"{project.name} on {project.board.name}", columns, rows)
    print(
        f"Means of {found.runs} runs, without the {found.hook:.0f} instructions of each step's "
        f"hook. The timer counts every {found.resolution:g} instructions."
    )
    first = found.first_difference
    if first is not None:
        print(f"First difference from this machine: {first.layer}, in {first.kernel}.")
    elif args.compare:
        print("Every step gives what it gives on this machine.")
    return 0


def _sizes(report) -> list[tuple]:
    return [
        ("flash, bytes", report.flash),
        ("  of it weights", report.weights),
        ("  of it the model's code", report.model_code),
        ("static RAM, bytes", report.ram),
        ("  of it the arena", report.arena),
        ("stack, one inference at most, bytes", report.stack.model),
        ("stack, firmware at most, bytes", report.stack.total),
        ("stack reserved, bytes", report.stack_reserved),
    ]


def _count(text: str) -> int:
    value = int(text)
    if not 0 < value <= 10_000:
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 1 to 10,000")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text}: expected seconds, more than 0")
    return value
