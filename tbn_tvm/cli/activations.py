"""The flags about activations, of commands that compile for boards."""

from __future__ import annotations

import argparse

from tbn_tvm.errors import UsageError


def add_activation_flags(parser: argparse.ArgumentParser) -> None:
    """What layers hand to one another on a board, for commands that compile for one."""
    parser.add_argument(
        "--activations",
        choices=["float32", "int8"],
        default="float32",
        help="what layers hand to one another on a board or in an export (int8 needs "
        "--calibration)",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help=".npz or .npy with samples of the inputs, from which int8 scales are chosen",
    )
    parser.add_argument(
        "--quantization",
        choices=["affine", "symmetric"],
        default="affine",
        help="where the zero of int8 tensors lies",
    )


def check_activation_flags(args: argparse.Namespace) -> None:
    """Refuse one of the flags without the other."""
    if (args.activations == "int8") != bool(args.calibration):
        raise UsageError("--activations int8 and --calibration FILE belong together")


def read_calibration(args: argparse.Namespace, model):
    """The samples that int8 scales are chosen from."""
    from tbn_tvm.cli.output import load_inputs
    from tbn_tvm.micro.quantization import Calibration
    from tbn_tvm.quantize import Scheme

    arrays, _labels = load_inputs(args.calibration, model.signature)
    return Calibration(arrays, Scheme(args.quantization))
