"""Compile the shipped model for this CPU and for a Cortex-M4, run both, and compare.

    python examples/mnist_mlp/demo.py [--output DIR]

Reads `mnist_mlp.pt2` and the 200 test digits beside it; needs no data set.
"""

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import tbn_tvm
from tbn_tvm.errors import TbnError
from tbn_tvm.inspect import LayerInfo, totals

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Do what the module says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=HERE.parents[1] / "build" / "demo")
    output = parser.parse_args().output
    with np.load(HERE / "digits.npz") as digits:
        images, labels = digits["x"], digits["labels"]

    console = Console()
    with console.status("compiling for this CPU"):
        model = HERE / "mnist_mlp.pt2"
        artifact = tbn_tvm.compile(model, "llvm")
        artifact.save(output / "mnist_mlp.tbn")
    host = tbn_tvm.Artifact.load(output / "mnist_mlp.tbn").run(images)

    with console.status("compiling for a Cortex-M4, building and emulating"):
        project = tbn_tvm.compile(model, "mps2-an386")
        project.save(output / "mnist_mlp-mps2-an386")
        with tbn_tvm.micro.Session(output / "mnist_mlp-mps2-an386") as session:
            device = session.run(images)
            sizes, statistics = session.build_report, session.statistics

    sums = totals([LayerInfo.from_dict(row) for row in artifact.layers])
    difference = np.abs(host - device).max() / np.abs(host).max()
    same = int((host.argmax(1) == device.argmax(1)).sum())
    table = Table("figure", "value", title="784-128-10, p = 4", title_justify="left")
    table.columns[1].justify = "right"
    for name, value in (
        ("bits per weight", f"{sums['bits_per_weight']:.3f}"),
        ("weights as stored / float32, bytes", f"{sums['nbytes']:,} / {sums['float_bytes']:,}"),
        ("multiply-adds computed / dense", f"{sums['macs']:,} / {sums['macs_dense']:,}"),
        ("digits right on the CPU", f"{(host.argmax(1) == labels).sum()} of {len(labels)}"),
        ("digits right on the Cortex-M4", f"{(device.argmax(1) == labels).sum()} of {len(labels)}"),
        ("same prediction on both", f"{same} of {len(labels)}"),
        ("largest difference of a logit, relative", f"{difference:.1e}"),
        ("Cortex-M4 instructions per inference", f"{max(statistics.instructions):,}"),
        ("Cortex-M4 flash: weights / code, bytes", f"{sizes.weights:,} / {sizes.model_code:,}"),
        ("Cortex-M4 flash with the host protocol, bytes", f"{sizes.flash:,}"),
        ("Cortex-M4 RAM: arena with the input / total, bytes", f"{sizes.arena:,} / {sizes.ram:,}"),
    ):
        table.add_row(name, value)
    console.print(table)
    console.print(f"generated C: {output / 'mnist_mlp-mps2-an386'}", soft_wrap=True)
    if same != len(labels) or difference > 1e-4:
        raise SystemExit("host and device disagree")


if __name__ == "__main__":
    try:
        main()
    except TbnError as error:
        raise SystemExit(f"demo: error: {error}") from None
