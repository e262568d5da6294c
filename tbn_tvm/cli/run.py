"""``tbn-tvm run``: run an artifact on this machine."""

from __future__ import annotations

import argparse

from tbn_tvm.cli.output import (
    add_json_flag,
    classification,
    load_inputs,
    outputs_by_name,
    print_json,
    print_table,
    save_outputs,
    shown_classes,
)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser("run", help="run an artifact on this machine")
    parser.add_argument("artifact", metavar="ARTIFACT", help="made by tbn-tvm compile")
    parser.add_argument(
        "--input",
        required=True,
        metavar="FILE",
        help=".npz with an array an input (and, if known, `labels`), or .npy for a single input",
    )
    parser.add_argument("--output", metavar="FILE.npz", help="write the outputs")
    add_json_flag(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load, run and report."""
    from tbn_tvm.runtime import Artifact

    artifact = Artifact.load(args.artifact)
    inputs, labels = load_inputs(args.input, artifact.signature)
    outputs = outputs_by_name(artifact.signature, artifact.run(inputs))
    if args.output:
        save_outputs(args.output, outputs)
    peak = artifact.peak_memory
    found = classification(outputs, labels)
    if args.json:
        print_json(
            {
                "artifact": args.artifact,
                "outputs": {name: y.tolist() for name, y in outputs.items()},
                **found,
                **({} if peak is None else {"peak_device_memory": peak}),
            }
        )
        return 0
    rows = [(name, f"{y.dtype} {y.shape}") for name, y in outputs.items()]
    if "predictions" in found:
        rows.append(("classes", shown_classes(found["predictions"])))
    if "accuracy" in found:
        rows.append(("accuracy", f"{found['accuracy']:.2%} of {len(found['predictions'])}"))
    if peak is not None:
        rows.append(("peak device memory, bytes", peak))
    print_table(artifact.name, ("", ""), rows)
    return 0
