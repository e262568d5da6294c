"""``tbn-tvm micro``: boards, firmware, and running it."""

from __future__ import annotations

import argparse
import sys

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


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Register the command and its own."""
    parser = commands.add_parser("micro", help="bare-metal boards: list, build, run")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    boards = actions.add_parser("boards", help="list the boards")
    add_json_flag(boards)
    boards.set_defaults(run=run_boards, needs_tvm=False)

    build = actions.add_parser("build", help="cross-compile a project and tell its sizes")
    build.add_argument("project", metavar="DIR", help="made by tbn-tvm compile --target BOARD")
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
    runner.add_argument("project", metavar="DIR", help="made by tbn-tvm compile --target BOARD")
    runner.add_argument("--input", required=True, metavar="FILE", help="as for tbn-tvm run")
    runner.add_argument("--output", metavar="FILE.npz", help="write the outputs")
    runner.add_argument(
        "--timeout", type=_seconds, default=60.0, metavar="S", help="for one inference (60)"
    )
    add_json_flag(runner)
    runner.set_defaults(run=run_run, needs_tvm=False)


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

    report = build(args.project, args.protocol, args.source)
    memory = memory_report(Project.load(args.project), report)
    save_report(args.project, memory)
    if args.json:
        print_json({**report.to_dict(), "memory_report": memory})
    else:
        print_memory(memory)
    return 0


def run_run(args: argparse.Namespace) -> int:
    """Build, run in the emulator, and report outputs, instructions and memory."""
    from rich.console import Console

    from tbn_tvm.micro.project import Project
    from tbn_tvm.micro.session import Session

    project = Project.load(args.project)
    inputs, labels = load_inputs(args.input, project.signature)
    # Checked before anything is built: a wrong input is told at once.
    project.signature.bind((inputs,), {})
    with (
        Console(file=sys.stderr).status(f"building and running on {project.board.name}"),
        Session(args.project, run_timeout=args.timeout) as session,
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


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text}: expected seconds, more than 0")
    return value
