"""A process that tries model files: ``python -m tbn_tvm.testing.fuzz_worker BYTES``.

Reads a path a line from standard input. Answers each with lines of JSON on standard output: a
verdict on what we did with the file, and where it compiled, a second one once the judge (ONNX
Runtime for ``.onnx``, PyTorch for ``.pt2``) has run it. Killed by a signal, it leaves the verdict
out. BYTES limits the memory that a file may make it take on top of what it starts with.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from pathlib import Path

import numpy as np

BATCH = 2


def main() -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    # What libraries print must not be taken for answers.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    _warm_up()
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = taken + int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def answer(verdict: str, detail: str = "") -> None:
        answers.write(json.dumps([verdict, detail]) + "\n")
        answers.flush()

    answer("ready")
    for line in sys.stdin:
        _try(Path(line.rstrip("\n")), answer)


def _warm_up() -> None:
    import onnxruntime  # noqa: F401
    import torch
    import tvm  # noqa: F401

    import tbn_tvm.compiler
    import tbn_tvm.frontend.onnx.importer
    import tbn_tvm.frontend.torch  # noqa: F401

    torch.set_num_threads(1)


def _try(path: Path, answer) -> None:
    from tbn_tvm.errors import TbnError
    from tbn_tvm.evaluate import evaluate
    from tbn_tvm.importing import import_model

    try:
        model = import_model(path)
        feeds = _feeds(model.signature)
        results = evaluate(model, feeds)
    except TbnError as error:
        answer("refused", str(error))
        return
    except Exception:
        answer("raised", traceback.format_exc())
        return
    answer("compiled")
    try:
        judge = _onnx_runtime if path.suffix == ".onnx" else _pytorch
        expected = judge(path, model, feeds)
    except Exception as error:
        answer("unjudged", str(error))
        return
    answer(*_compared(results, expected))


def _feeds(signature) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    feeds = []
    for spec in signature.inputs:
        shape = spec.with_batch(BATCH).shape
        if spec.nbytes > 2**24:
            from tbn_tvm.errors import TbnError

            raise TbnError(f"input {spec} is too large to try")
        values = rng.standard_normal(shape) if "float" in spec.dtype else rng.integers(0, 2, shape)
        feeds.append(np.asarray(values).astype(spec.dtype))
    return feeds


def _onnx_runtime(path: Path, model, feeds: list[np.ndarray]) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    # As the model says: rewriting it would have the judge err on its own account.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in model.signature.inputs]
    return session.run(None, dict(zip(names, feeds, strict=True)))


def _pytorch(_path: Path, model, feeds: list[np.ndarray]) -> list[np.ndarray]:
    import torch
    from torch.utils import _pytree

    tensors = [torch.from_numpy(feed) for feed in feeds]
    args, kwargs = _pytree.tree_unflatten(tensors, model.program.call_spec.in_spec)
    with torch.no_grad():
        results = _pytree.tree_leaves(model.program.module()(*args, **kwargs))
    return [result.numpy() for result in results]


def _compared(results: list[np.ndarray], expected: list[np.ndarray]) -> tuple[str, str]:
    if len(results) != len(expected):
        return "differs", f"{len(results)} outputs, {len(expected)} expected"
    for index, (ours, theirs) in enumerate(zip(results, expected, strict=True)):
        theirs = np.asarray(theirs)
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return "differs", (
                f"output {index}: {ours.dtype} {ours.shape}, expected {theirs.dtype} {theirs.shape}"
            )
        with np.errstate(all="ignore"):
            a, b = ours.astype(np.float64), theirs.astype(np.float64)
            # Beyond this, the order of sums decides between numbers, infinities and none.
            sound = np.isfinite(b) & (np.abs(b) < 1e30)
            if not sound.any():
                continue
            scale = max(float(np.abs(b[sound]).max()), 1e-6)
            error = float(np.abs(a - b)[sound].max())
        if not error <= 1e-3 * scale:
            return "differs", f"output {index}: off by {error} of {scale}"
    return "agrees", ""


if __name__ == "__main__":
    main()
