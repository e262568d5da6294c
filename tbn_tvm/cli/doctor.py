"""``tbn-tvm doctor``: what is there, what is missing, and the command that gets it."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from tbn_tvm.cli.output import add_json_flag, print_json, print_table


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser("doctor", help="what is installed, and how to get what is not")
    add_json_flag(parser)
    parser.set_defaults(run=run, needs_tvm=False)


def run(args: argparse.Namespace) -> int:
    """Look and report; fails where something that every use needs is missing."""
    from tbn_tvm.doctor import examine

    findings = examine()
    healthy = all(finding.found for finding in findings if finding.required)
    if args.json:
        print_json({"healthy": healthy, "findings": [asdict(finding) for finding in findings]})
    else:
        print_table(
            "tbn-tvm doctor",
            ("", "found", "detail", "to get it"),
            [(f.what, f.found, f.detail, "" if f.found else f.remedy) for f in findings],
        )
    return 0 if healthy else 1
