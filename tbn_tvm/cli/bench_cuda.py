"""``tbn-tvm bench cuda``: tiled layers on a GPU against cuBLAS and cuDNN."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tbn_tvm.cli.output import add_json_flag, print_json, print_table
from tbn_tvm.errors import TbnError


def add_parser(kinds: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = kinds.add_parser(
        "cuda",
        help="layers on a GPU against cuBLAS and cuDNN",
        description="Times of CUDA-graph replays with operands rotated past the cache; outputs are "
        "checked first. Without --shape, --p and --batch: dense layers of three shapes, and "
        "convolutions of 3 x 3.",
    )
    parser.add_argument(
        "--shape", action="append", type=_shape, metavar="MxN", help="dense: outputs x inputs"
    )
    parser.add_argument("--p", nargs="+", type=_count, metavar="P", help="compression factors")
    parser.add_argument("--batch", nargs="+", type=_count, metavar="B", help="numbers of samples")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--records", metavar="DIR", help="tuning records to use first")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw speed-up against batch (needs matplotlib)"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="no GPU: build every kernel and say what would be measured",
    )
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and report; 1 where a case could not be measured."""
    # Before TVM, which finds the CUDA libraries only where they are loaded or on the loader's path.
    import torch

    torch.cuda.is_available()

    from tbn_tvm.bench import cuda, cuda_cases

    cases = list(
        cuda_cases.table(
            args.shape or cuda_cases.SHAPES,
            args.p or cuda_cases.FACTORS,
            args.batch or cuda_cases.BATCHES,
            args.dtype,
        )
    )
    if args.dtype == "float16" and not (args.shape or args.p or args.batch):
        cases += cuda_cases.convolutions()
    if args.dry_run:
        return _dry_run(cases, args)
    if args.plot:
        from tbn_tvm.plotting import require_matplotlib

        require_matplotlib()
    arch = cuda.require_device()
    failed: list[tuple] = []

    def tell(found) -> None:
        if isinstance(found, tuple):
            failed.append(found)
            print(f"{found[0].key}: {found[1]}", file=sys.stderr)
            return
        print(f"{found.case.key}: {found.ratio:.2f}x {found.rival}", file=sys.stderr)

    with tempfile.TemporaryDirectory(prefix="tbn_tvm_") as folder:
        rows = cuda.measure(cases, Path(folder), _records(arch, args.records), tell)
    if args.plot:
        from tbn_tvm.bench import cuda_plot

        cuda_plot.draw(cuda_plot.points_of([row.to_dict() for row in rows]), args.plot)
    if args.json:
        print_json(
            {
                "machine": _machine(arch),
                "rows": [row.to_dict() for row in rows],
                "failed": [{"case": case.to_dict(), "error": error} for case, error in failed],
            }
        )
    else:
        print_table(
            f"layers on {_machine(arch)['gpu']}, {args.dtype}",
            ("layer", "kernel", "us", "rival", "rival, us", "ratio", "of bandwidth", "of rate"),
            [
                (
                    row.case.key,
                    row.kernel,
                    row.ours.median * 1e6,
                    row.rival,
                    row.rivals[row.rival].median * 1e6,
                    row.ratio,
                    row.bandwidth_share,
                    row.arithmetic_share,
                )
                for row in rows
            ],
        )
    return int(bool(failed))


def _records(arch: str, folder: str | None):
    from tbn_tvm.bench.cuda_build import target_of
    from tbn_tvm.schedules.records import Records

    return Records.load(target_of(arch), folder)


def _machine(arch: str) -> dict:
    import torch

    from tbn_tvm.compiler import versions

    return {
        "gpu": torch.cuda.get_device_name(0),
        "arch": arch,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        **versions(),
    }


def _dry_run(cases: list, args: argparse.Namespace) -> int:
    """Build everything for Hopper and tell; nothing is run and nothing timed."""
    from tbn_tvm.bench.cuda_build import Builder, request_of
    from tbn_tvm.cuda import find_nvcc

    find_nvcc()
    arch = "sm_90a"
    records = _records(arch, args.records)
    rows, failed = [], 0
    with tempfile.TemporaryDirectory(prefix="tbn_tvm_") as folder, Builder(folder) as builder:
        requests = [request_of(case, arch, records) for case in cases]
        futures = [builder.submit(request) for request in requests]
        for case, request, future in zip(cases, requests, futures, strict=True):
            row = {"case": case.to_dict(), "kernel": request.kernel, "configs": request.configs}
            try:
                row["build_seconds"] = future.result().seconds
            except TbnError as error:
                row["error"] = str(error)
                failed += 1
            rows.append((case.key, row))
    if args.json:
        print_json({"dry_run": True, "arch": arch, "rows": [row for _, row in rows]})
    else:
        print_table(
            f"would be measured; built for {arch}, nothing was run",
            ("layer", "kernel", "configuration", "built"),
            [
                (
                    key,
                    row["kernel"],
                    "; ".join(" ".join(f"{k}={v}" for k, v in c.items()) for c in row["configs"]),
                    row.get("error", "yes"),
                )
                for key, row in rows
            ],
        )
    return int(bool(failed))


def _shape(text: str) -> tuple[int, int]:
    m, _, n = text.partition("x")
    if not (m.isdigit() and n.isdigit() and int(m) and int(n)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected MxN, 4096x4096 for example")
    return int(m), int(n)


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)
