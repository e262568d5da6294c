"""Memory and latency of the Vision Transformer on a GPU, against PyTorch's dense one.

The peak of ours is what the driver has handed out from loading to the last run: weights,
activations, workspace, and code. Nothing else may use the GPU meanwhile.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tbn_tvm.errors import TbnError

TARGET_BYTES = 16_000_000
"""What the project wants to stay within."""

TOLERANCE = 2e-2
"""Norm of the error over that of the outputs: float16 through six blocks."""

_MODEL = "tbn_tvm.models.vit:example_half"
_RUNS = 30


def prepare(folder: Path, arch: str, records=None) -> dict:
    """Compile for a GPU and compute the expected outputs; takes no GPU.

    Parameters
    ----------
    folder : Path
        For the artifacts and the expected outputs.
    arch : str
        ``sm_90a`` for one.
    records : path, optional
        A folder of records.

    Returns
    -------
    dict
        The planned memory.
    """
    import torch

    from tbn_tvm import compiler

    folder.mkdir(parents=True, exist_ok=True)
    model = compiler.import_model(_MODEL)
    more = {} if records is None else {"records": records}
    plans = {}
    for name, graph in (("launches", False), ("graph", True)):
        artifact = compiler.compile(model, f"cuda={arch}", batch=1, cuda_graph=graph, **more)
        artifact.save(folder / f"vit-{name}.tbn")
        plans[name] = artifact.memory
    torch.manual_seed(1)
    x = torch.randn(1, 3, 256, 256).half()
    with torch.inference_mode():
        expected = model.program.module()(x)
    np.savez(folder / "vit.npz", x=x.numpy(), expected=expected.float().numpy())
    (folder / "vit.json").write_text(json.dumps(plans))
    return plans


def is_prepared(folder: Path) -> bool:
    """Whether :func:`prepare` has come to its end."""
    return (folder / "vit.json").is_file()


def measure(folder: Path, name: str) -> dict:
    """Load an artifact, run it and look at the memory it takes.

    Parameters
    ----------
    folder : Path
        Of :func:`prepare`.
    name : str
        ``launches`` or ``graph``.

    Raises
    ------
    TbnError
        Where the outputs are wrong.
    """
    import torch  # noqa: F401  (brings the CUDA run time; uses none of the GPU here)

    from tbn_tvm.runtime import Artifact

    artifact = Artifact.load(folder / f"vit-{name}.tbn")
    with np.load(folder / "vit.npz") as kept:
        x, expected = kept["x"], kept["expected"]
    run = artifact.prepare(x)
    y = run().astype(np.float64)
    error = float(np.linalg.norm(y - expected) / np.linalg.norm(expected))
    if not error <= TOLERANCE:
        raise TbnError(f"ViT ({name}): outputs are off by {error:.1e}: not measured")
    for _ in range(3):
        run()
    peak = artifact.peak_memory
    return {
        "what": f"tbn-tvm, float16, {name}",
        "peak_bytes": peak,
        "planned": artifact.memory,
        "error": error,
        "us": _median(run.run, run.device.sync) * 1e6,
        "target_bytes": TARGET_BYTES,
    }


def measure_dense() -> dict:
    """The same architecture with dense float16 weights, in PyTorch."""
    import torch

    from tbn_tvm.models.vit import VisionTransformer

    free, _ = torch.cuda.mem_get_info()
    torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        model = VisionTransformer().half().cuda().eval()
        x = torch.randn(1, 3, 256, 256, device="cuda").half()
        seconds = _median(lambda: model(x), torch.cuda.synchronize)
        allocated = torch.cuda.max_memory_allocated()
        taken = free - torch.cuda.mem_get_info()[0]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model(x)
        replayed = _median(graph.replay, torch.cuda.synchronize)
    return {
        "what": "PyTorch, dense, float16",
        "peak_bytes": allocated,
        "driver_bytes": taken,
        "us": seconds * 1e6,
        "graph_us": replayed * 1e6,
    }


def _median(call: Callable, wait: Callable) -> float:
    """Seconds of a call to its end, on the host's clock."""
    samples = []
    for _ in range(_RUNS):
        wait()
        start = time.perf_counter()
        call()
        wait()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)
