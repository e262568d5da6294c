"""``tbn-tvm compile``: a model to an artifact or a bare-metal project."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from tbn_tvm.cli.activations import (
    add_activation_flags,
    check_activation_flags,
    read_calibration,
)
from tbn_tvm.cli.initialisers import add_report_flag, print_report, report_of
from tbn_tvm.cli.output import add_json_flag, print_json, print_table, write_whole
from tbn_tvm.errors import UsageError


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "compile",
        help="compile a model for a CPU, a GPU or a board",
        description="Compile MODEL: a .pt2 or .onnx file, package.module:factory, or models:NAME, "
        "an architecture that comes along, untrained. A CPU or cuda target gives one artifact file "
        "and prints the memory it is planned to need, a board gives a folder of C. Compiling for "
        "cuda takes nvcc and no GPU; running takes neither nvcc nor any other compiler.",
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "--target",
        help="llvm (default), host (this CPU's features), cuda (the GPU present, else sm_80), "
        "cuda=sm_90 or other architecture, a TVM target as JSON, or a board (tbn-tvm micro "
        "boards); with --export c (any core, the default) or a board",
    )
    parser.add_argument(
        "--export",
        choices=["lib", "arduino", "zephyr", "mlf"],
        help="write C for your own build instead: a plain library, an Arduino library or a Zephyr "
        "module (folders), or a Model Library Format archive (a tar file)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="fix a symbolic batch to N samples; memory is planned for just that",
    )
    parser.add_argument(
        "--max-batch",
        type=int,
        metavar="N",
        help="keep a symbolic batch free up to N, for which memory is planned",
    )
    parser.add_argument(
        "--cuda-graph",
        action="store_true",
        help="launch the kernels as a CUDA graph (cuda, fixed shapes: see --batch)",
    )
    parser.add_argument(
        "--emit",
        choices=["cuda"],
        help="write the CUDA source beside the artifact, as NAME.cu (nvcc is needed as ever)",
    )
    parser.add_argument(
        "--records",
        metavar="DIR",
        help="measured kernel configurations of tbn-tvm tune, before the shipped ones",
    )
    add_activation_flags(parser)
    parser.add_argument(
        "--io",
        choices=["arena", "static"],
        default="arena",
        help="where inputs and outputs lie on a board: in the arena, whose memory they share with "
        "what else is needed (default), or in static buffers, where inputs survive a run",
    )
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="draw a board's arena over time (.png, .pdf or .svg; needs matplotlib)",
    )
    parser.add_argument(
        "-o", "--output", metavar="PATH", help="artifact file, or folder of a project or export"
    )
    parser.add_argument("--name", help="the model's name in generated C")
    parser.add_argument("--dump-ir", metavar="DIR", help="write the IR after each phase")
    add_report_flag(parser)
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compile, save and report."""
    from tbn_tvm import compiler
    from tbn_tvm.runtime import Artifact

    if args.export:
        return run_export(args)
    args.target = "llvm" if args.target is None else args.target
    target = compiler.resolve_target(args.target)
    name = compiler.c_identifier(args.name) if args.name else compiler.default_name(args.model)
    if args.dump_ir and Path(args.dump_ir).is_file():
        raise UsageError(f"--dump-ir {args.dump_ir}: is a file, expected a folder")
    is_file = isinstance(target, dict)
    if args.emit and not (is_file and target["kind"] == "cuda"):
        raise UsageError("--emit cuda: only a cuda target has CUDA source")
    if args.emit and Path(args.output or "").suffix == ".cu":
        raise UsageError(f"-o {args.output}: --emit cuda writes the source there; another suffix")
    _check_output(args.output, is_file)
    _check_records(args.records)
    check_activation_flags(args)
    if args.plot and is_file:
        raise UsageError(f"--plot is for boards, not for {args.target}")
    if args.plot:
        from tbn_tvm.plotting import check_plot

        check_plot(args.plot)
    if args.calibration and is_file:
        raise UsageError(f"--activations int8 is for boards, not for {args.target}")
    tell = _progress() if not args.json else None
    model, calibration, initialisers = args.model, None, None
    if args.calibration or args.report:
        model = compiler.import_model(args.model, name=name, dump_ir=args.dump_ir)
    if args.calibration:
        calibration = read_calibration(args, model)
    if args.report:
        initialisers = report_of(model)
    compiled = compiler.compile(
        model,
        target if is_file else args.target,
        name=name,
        calibration=calibration,
        records=args.records,
        dump_ir=args.dump_ir,
        progress=tell,
        batch=args.batch,
        max_batch=args.max_batch,
        cuda_graph=args.cuda_graph,
        io=args.io,
    )
    if isinstance(compiled, Artifact):
        path = compiled.save(args.output or f"{name}.tbn")
        report = {
            "artifact": str(path),
            "target": compiled.target,
            "artifact_bytes": path.stat().st_size,
            "library_bytes": len(compiled.library),
            "constant_bytes": sum(array.nbytes for array in compiled.constants),
            "memory": compiled.memory,
            "kernels": compiled.kernels,
            **compiled.signature.to_dict(),
            "layers": compiled.layers,
        }
        lines = [
            ("artifact", str(path)),
            ("library, bytes", report["library_bytes"]),
            *_memory_rows(compiled),
            *_kernel_rows(compiled.kernels),
        ]
        if compiled.device_code:
            report["device_code_bytes"] = sum(map(len, compiled.device_code.values()))
            lines.insert(1, ("architecture", _architecture(args.target, compiled.target["arch"])))
            lines.append(("machine code, bytes", report["device_code_bytes"]))
        if args.emit:
            report["source"] = str(write_whole(path.with_suffix(".cu"), compiled.source))
            lines.append(("source", report["source"]))
    else:
        return _report_board(args, compiled, tell, initialisers)
    if args.json:
        print_json(_with_initialisers(report, initialisers))
        return 0
    print_table(f"{name} for {args.target}", ("", ""), lines)
    if initialisers is not None:
        print_report(initialisers)
    return 0


def _with_initialisers(report: dict, initialisers: list | None) -> dict:
    if initialisers is not None:
        report["initialisers"] = [row.to_dict() for row in initialisers]
    return report


def _report_board(args: argparse.Namespace, project, tell, initialisers: list | None) -> int:
    """Save a board's project, build it where there is a compiler, and tell what it takes."""
    from tbn_tvm.cli.output import print_memory
    from tbn_tvm.micro.arena_plot import plot_arena
    from tbn_tvm.micro.build import COMPILER, INSTALL_COMPILER, build
    from tbn_tvm.micro.report import memory_report, save_report

    path = project.save(args.output or f"{project.name}-{project.board.name}")
    built = None
    if shutil.which(COMPILER):
        (tell or (lambda _step: None))("building")
        built = build(path)
    memory = memory_report(project, built)
    saved = save_report(path, memory)
    plotted = plot_arena(memory, args.plot) if args.plot else None
    if args.json:
        sums = ("weights", "arena", "arena_lower_bound", "io")
        report = {
            "project": str(path),
            "board": project.board.name,
            "memory": {key: project.memory[key] for key in sums},
            "memory_report": memory,
            "plot": plotted and str(plotted),
            "kernels": project.kernels,
            **project.signature.to_dict(),
            "layers": project.layers,
        }
        print_json(_with_initialisers(report, initialisers))
        return 0
    files = [("project", str(path)), ("this report as JSON", str(saved))]
    print_table(
        f"{project.name} for {project.board.name}",
        ("", ""),
        [*files, *([("plot", str(plotted))] if plotted else []), *_kernel_rows(project.kernels)],
    )
    print_memory(memory)
    if initialisers is not None:
        print_report(initialisers)
    if built is None:
        print(
            f"code sizes and stack: unknown without {COMPILER}; on Debian: {INSTALL_COMPILER}",
            file=sys.stderr,
        )
    return 0


def run_export(args: argparse.Namespace) -> int:
    """Export, save and report."""
    from tbn_tvm import compiler
    from tbn_tvm.micro.export import check_destination, create_export
    from tbn_tvm.targets import board_names, load_board

    if args.plot or args.io != "arena":
        flag = "--plot" if args.plot else f"--io {args.io}"
        raise UsageError(f"{flag} is for a board's project, not for --export {args.export}")
    if args.report:
        raise UsageError("--report with --export: run tbn-tvm inspect MODEL --report instead")
    for flag in ("batch", "max_batch", "cuda_graph", "emit"):
        if getattr(args, flag):
            raise UsageError(
                f"--{flag.replace('_', '-')} is for TVM's run time, not for --export {args.export}"
            )
    _check_records(args.records)
    target = "c" if args.target is None else args.target
    if target != "c" and target not in board_names():
        raise UsageError(
            f"--target {target}: an export is for c (any core) or a board, one of "
            f"{', '.join(board_names())}"
        )
    check_activation_flags(args)
    if args.dump_ir and Path(args.dump_ir).is_file():
        raise UsageError(f"--dump-ir {args.dump_ir}: is a file, expected a folder")
    if args.output:
        check_destination(args.export, Path(args.output))
    name = compiler.c_identifier(args.name) if args.name else compiler.default_name(args.model)
    tell = (lambda _step: None) if args.json else _progress()
    dump_ir = Path(args.dump_ir) if args.dump_ir else None
    tell("importing")
    model = compiler.import_model(args.model, name=name, dump_ir=dump_ir)
    tell("lowering")
    export = create_export(
        model,
        args.export,
        None if target == "c" else load_board(target),
        dump_ir=dump_ir,
        calibration=read_calibration(args, model) if args.calibration else None,
        records=args.records,
    )
    path = export.save(args.output or export.default_path)
    if args.json:
        print_json(
            {
                "export": args.export,
                "path": str(path),
                "target": target,
                "files": sorted(export.files),
                "memory": export.memory,
                **export.facts.lowered.signature.to_dict(),
                "layers": [layer.to_dict() for layer in model.layers],
            }
        )
        return 0
    rows = [
        (args.export, str(path)),
        ("weights, bytes", export.memory["weights"]),
        ("arena in RAM, bytes", export.memory["arena"]),
    ]
    print_table(f"{name} for {target}", ("", ""), rows)
    return 0


def _kernel_rows(kernels: list[dict]) -> list[tuple]:
    """Kernels of tiled layers with the sources of their configurations, equal ones together."""
    counts: dict[tuple, int] = {}
    for kernel in kernels:
        key = kernel["kernel"], ", ".join(dict.fromkeys(kernel["sources"]))
        counts[key] = counts.get(key, 0) + 1
    return [
        (f"layers by {kernel}", f"{count} (configured by {sources})")
        for (kernel, sources), count in counts.items()
    ]


def _architecture(asked: str, arch: str) -> str:
    """The architecture, and where it comes from if the user did not name it."""
    if asked != "cuda":
        return arch
    from tbn_tvm.cuda import device_arch

    return f"{arch} ({'the default: no CUDA device here' if device_arch() is None else 'detected'})"


def _memory_rows(artifact) -> list[tuple]:
    plan = artifact.memory
    samples = f"batch of {plan['batch']}"
    return [
        ("memory: weights, bytes", plan["weights"]),
        (f"memory: inputs, {samples}, bytes", plan["inputs"]),
        (f"memory: activations, {samples}, bytes", plan["activations"]),
        (f"memory: workspace, {samples}, bytes", plan["workspace"]),
        ("memory: peak as planned, bytes", plan["peak"]),
    ]


def _check_records(folder: str | None) -> None:
    if folder and not Path(folder).is_dir():
        raise UsageError(f"--records {folder}: no such folder; tbn-tvm tune writes one")


def _check_output(output: str | None, is_file: bool) -> None:
    """Told now rather than when a compilation of minutes is done."""
    if output is None:
        return
    from tbn_tvm.micro.project import check_destination

    if not is_file:
        check_destination(Path(output))
    elif Path(output).is_dir():
        raise UsageError(f"-o {output}: is a folder; an artifact is a file")


def _progress():
    def tell(step: str) -> None:
        print(f"{step} ...", file=sys.stderr)

    return tell
