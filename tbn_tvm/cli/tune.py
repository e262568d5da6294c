"""``tbn-tvm tune``: measure kernels' configurations and record the best."""

from __future__ import annotations

import argparse
import sys

from tbn_tvm.cli.activations import add_activation_flags, check_activation_flags, read_calibration
from tbn_tvm.cli.output import add_json_flag, print_json, print_table
from tbn_tvm.errors import UsageError


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "tune",
        help="measure a model's kernels and record the best configurations",
        description="Measure configurations of the kernels that MODEL uses and record the best in "
        "a folder, which `tbn-tvm compile --records` takes. Ctrl-C records what was found so far; "
        "a run that was stopped or killed goes on where it was when it is started again. For a "
        "board, every kernel that fits a layer is emulated and the one of fewest instructions "
        "wins: there, none of the options about trials and measuring is needed.",
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "--target",
        default="host",
        help="host (default), cuda, cuda=sm_90, a TVM target as JSON, or a board (tbn-tvm micro "
        "boards)",
    )
    parser.add_argument(
        "--trials",
        type=int,
        default=64,
        metavar="N",
        help="configurations to measure over all layers, earlier runs included (default 64)",
    )
    parser.add_argument("--records", required=True, metavar="DIR", help="folder of the records")
    parser.add_argument(
        "--tracker", metavar="HOST:PORT", help="measure on the servers of an RPC tracker"
    )
    parser.add_argument("--key", help="the servers' key at the tracker")
    parser.add_argument(
        "--timeout",
        type=float,
        default=10.0,
        metavar="S",
        help="seconds that a candidate may run (default 10)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random part of the search")
    parser.add_argument(
        "--batch",
        nargs="+",
        type=int,
        default=[],
        metavar="B",
        help="batch sizes to fix the model to; by default its batch is left as it is",
    )
    parser.add_argument(
        "--layer",
        action="append",
        type=int,
        default=[],
        metavar="I",
        help="tune only this layer, counted from 0; may be repeated",
    )
    add_activation_flags(parser)
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Tune and report; 130 where Ctrl-C ended it."""
    if bool(args.tracker) != bool(args.key):
        raise UsageError("--tracker and --key go together: give both or none")
    if args.timeout <= 0:
        raise UsageError(f"--timeout {args.timeout:g}: expected more than 0 seconds")
    if any(batch < 1 for batch in args.batch):
        raise UsageError(f"--batch {min(args.batch)}: expected at least 1")
    address = _address(args.tracker) if args.tracker else None
    check_activation_flags(args)
    from tbn_tvm.targets import board_names

    if args.target in board_names():
        return _run_board(args)
    if args.calibration:
        raise UsageError(f"--activations int8 is for boards, not for {args.target}")
    from tbn_tvm.tune import tune

    tracker = None
    if address is not None:
        from tbn_tvm.tune.measure import Tracker

        tracker = Tracker(*address, args.key)
    with _Display(args.json) as display:
        report = tune(
            args.model,
            args.target,
            trials=args.trials,
            records=args.records,
            timeout=args.timeout,
            seed=args.seed,
            batches=args.batch,
            layers=args.layer,
            tracker=tracker,
            progress=display.show,
        )
    if args.json:
        print_json(report.to_dict())
    else:
        print_table(
            f"recorded in {report.records}",
            ("layer", "kernel", "configuration", "default, us", "best, us", "times faster"),
            [_recorded_row(settled) for settled in report.settled],
        )
        left = f", {report.resumed} of them by earlier runs" if report.resumed else ""
        failed = f"; {report.failed} failed" if report.failed else ""
        print(f"{report.trials} configurations measured{left}{failed}")
        if report.settled and not any(settled.improved for settled in report.settled):
            print("the defaults are the best of what was measured")
    if report.interrupted:
        print("tbn-tvm: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def _run_board(args: argparse.Namespace) -> int:
    """Emulate, record and report."""
    if args.tracker or args.batch:
        flag = "--tracker" if args.tracker else "--batch"
        raise UsageError(f"{flag}: a board is emulated here, one sample at a time")
    from tbn_tvm import compiler
    from tbn_tvm.targets import load_board
    from tbn_tvm.tune.boards import tune_board

    def tell(step: str) -> None:
        if not args.json:
            print(f"{step} ...", file=sys.stderr)

    tell("importing")
    model = compiler.import_model(args.model)
    report = tune_board(
        model,
        load_board(args.target),
        records=args.records,
        calibration=read_calibration(args, model) if args.calibration else None,
        layers=args.layer,
        progress=tell,
    )
    if args.json:
        print_json(report.to_dict())
        return 0
    print_table(
        f"recorded in {report.records}",
        ("layers", "shape", "kernel", "instructions", "by rule", "instructions"),
        [
            (
                ", ".join(map(str, row.layers)),
                _shape(row.workload),
                row.best,
                round(row.instructions[row.best]),
                row.default,
                round(row.instructions[row.default]),
            )
            for row in report.measured
        ],
    )
    return 0


def _shape(workload) -> str:
    geometry = workload.product.geometry
    return f"{geometry.m}x{geometry.n} p {geometry.p}"


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise UsageError(f"--tracker {text}: expected HOST:PORT")
    return host, int(port)


def _recorded_row(settled) -> tuple:
    workload = settled.workload
    gain = settled.default_seconds / settled.seconds
    return (
        f"{_shape(workload)} batch {workload.batch or 'any'}",
        settled.kernel,
        _config(settled.config) if settled.config is not None else "(kernel only)",
        settled.default_seconds * 1e6,
        settled.seconds * 1e6,
        gain if settled.improved else "default is best",
    )


def _config(config: dict | None) -> str:
    return " ".join(f"{name}={value}" for name, value in (config or {}).items()) or "-"


class _Display:
    """A progress bar above a table of the best so far; plain lines where nobody watches."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self.quiet = quiet
        self.live = None
        self.told = ""

    def __enter__(self) -> _Display:
        if not self.quiet and self.console.is_terminal:
            from rich.live import Live

            self.live = Live(console=self.console, refresh_per_second=4, transient=True)
            self.live.start()
        return self

    def __exit__(self, *_exception) -> None:
        if self.live is not None:
            self.live.stop()

    def show(self, progress) -> None:
        """Draw a :class:`tbn_tvm.tune.session.Progress`."""
        if self.quiet:
            return
        if self.live is not None:
            self.live.update(_drawn(progress))
        elif progress.step != self.told:
            self.told = progress.step
            print(f"{progress.step} ...", file=sys.stderr)


def _drawn(progress):
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    head = Table.grid(padding=(0, 1))
    head.add_row(
        Text(progress.step),
        ProgressBar(total=max(progress.total, 1), completed=progress.done, width=40),
        Text(f"{progress.done} of {progress.total}"),
    )
    best = Table(
        "layer", "kernel", "at batch", "tried", "failed", "default, us", "best, us", "with"
    )
    for row in progress.rows:
        best.add_row(
            Text(row.layer),
            row.kernel,
            str(row.batch or "any"),
            f"{row.trials} of {row.space}",
            str(row.failed),
            _microseconds(row.default_seconds),
            _microseconds(row.best_seconds),
            Text(_config(row.config)),
        )
    return Group(head, best)


def _microseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e6:.2f}"
