"""Whether an ONNX file computes what the PyTorch program does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tbn_tvm.errors import TbnError
from tbn_tvm.loading import first_line, quiet

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

_BATCH = 3
"""Size tried for symbolic dimensions; not that of usual example inputs, which may be baked in."""

_TOLERANCES = {"float64": 1e-6, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference by dtype, as a share of the output's largest magnitude."""


class NotRunnable(Exception):
    """ONNX Runtime is not there, or has no kernel for an operation; the message says which."""


def largest_difference(program: ExportedProgram, path: Path) -> float:
    """Run a program in PyTorch and a file in ONNX Runtime on the same random inputs.

    Floats are standard normal. Integers and booleans are drawn from the program's example inputs,
    since only those are sure to be valid (token numbers, say).

    Returns
    -------
    float
        The largest difference, as a share of the output's largest magnitude.

    Raises
    ------
    NotRunnable
        Where ONNX Runtime cannot tell.
    TbnError
        Where outputs differ, or ONNX Runtime refuses the file.
    """
    session = _session(path)
    inputs = random_inputs(program)
    with quiet():
        expected = _run_pytorch(program, inputs)
    results = _run_onnx(session, inputs)
    worst = 0.0
    for spec, result, wanted in zip(session.get_outputs(), results, expected, strict=True):
        worst = max(worst, _difference(spec.name, result, wanted))
    return worst


def random_inputs(program: ExportedProgram, seed: int = 0) -> list[torch.Tensor]:
    """Valid inputs of a program, flat and in order, its symbolic dimensions set to a size.

    Parameters
    ----------
    program : torch.export.ExportedProgram
        Its shapes and, where it has them, example inputs.
    seed : int
        Of the generator.
    """
    import torch
    from torch.utils import _pytree

    generator = torch.Generator().manual_seed(seed)
    examples = (
        None if program.example_inputs is None else _pytree.tree_leaves(program.example_inputs)
    )
    names = program.graph_signature.user_inputs
    metas = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
    inputs = []
    for index, name in enumerate(names):
        value = metas.get(name)
        if not isinstance(value, torch.Tensor):
            raise TbnError(f"input {name!r} is no tensor: expected a model that takes only tensors")
        shape = [_size(extent, program) for extent in value.shape]
        example = examples[index] if examples is not None else None
        if value.dtype.is_floating_point:
            inputs.append(torch.randn(shape, generator=generator).to(value.dtype))
        elif example is None or not example.numel():
            inputs.append(torch.zeros(shape, dtype=value.dtype))
        else:
            chosen = torch.randint(example.numel(), shape, generator=generator)
            inputs.append(example.detach().cpu().reshape(-1)[chosen])
    return inputs


def _size(extent: int | torch.SymInt, program: ExportedProgram) -> int:
    """A number for an extent: an expression of symbols, each set within its range."""
    if isinstance(extent, int):
        return extent
    expression = extent.node.expr
    sizes = {}
    for symbol in expression.free_symbols:
        limits = program.range_constraints.get(symbol)
        size = _BATCH
        if limits is not None:
            size = int(max(limits.lower, min(limits.upper, _BATCH)))
        sizes[symbol] = size
    return int(expression.subs(sizes))


def _run_pytorch(program: ExportedProgram, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    import torch
    from torch.utils import _pytree

    arguments, named = _pytree.tree_unflatten(inputs, program.call_spec.in_spec)
    with torch.no_grad():
        return _pytree.tree_leaves(program.module()(*arguments, **named))


def _session(path: Path):
    try:
        import onnxruntime
    except ImportError:
        raise NotRunnable("ONNX Runtime is not installed (pip install onnxruntime)") from None
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors reach the caller as exceptions
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except errors.NotImplemented as error:
        raise NotRunnable(f"ONNX Runtime lacks a kernel: {_tail(error)}") from None
    except Exception as error:
        raise TbnError(f"ONNX Runtime refuses the file: {_tail(error)}") from None


def _run_onnx(session, inputs: list[torch.Tensor]) -> list[np.ndarray]:
    if any(str(x.dtype) == "torch.bfloat16" for x in inputs):
        raise NotRunnable("NumPy has no bfloat16 to hand to ONNX Runtime")
    feeds = {spec.name: x.numpy() for spec, x in zip(session.get_inputs(), inputs, strict=True)}
    try:
        return session.run(None, feeds)
    except Exception as error:
        raise TbnError(f"ONNX Runtime cannot run the file: {_tail(error)}") from None


def _tail(error: Exception) -> str:
    """What an error of ONNX Runtime says, without its own file names."""
    return first_line(error).rpartition(" : ")[2]


def _difference(name: str, result: np.ndarray, expected: torch.Tensor) -> float:
    dtype = str(expected.dtype).removeprefix("torch.")
    wanted = expected.double().numpy() if expected.dtype.is_floating_point else expected.numpy()
    if result.shape != wanted.shape or str(result.dtype) != dtype:
        raise TbnError(
            f"output {name!r} is {result.dtype} {result.shape} in ONNX Runtime and {dtype} "
            f"{wanted.shape} in PyTorch: no file was written"
        )
    if not wanted.size:
        return 0.0
    if dtype not in _TOLERANCES:
        if not np.array_equal(result, wanted):
            raise TbnError(f"output {name!r} differs in ONNX Runtime: no file was written")
        return 0.0
    given = result.astype(np.float64)
    finite = np.isfinite(wanted)
    scale = np.abs(wanted[finite]).max(initial=0.0)
    worst = np.abs(given - wanted)[finite].max(initial=0.0)
    same = np.array_equal(given[~finite], wanted[~finite], equal_nan=True)
    # Written so that a NaN in the result fails.
    if not (same and worst <= _TOLERANCES[dtype] * scale):
        raise TbnError(
            f"output {name!r} differs by {worst:.3g} between ONNX Runtime and PyTorch, at values "
            f"up to {scale:.3g}: no file was written (without the check, --no-check, it is)"
        )
    return float(worst / scale) if scale else 0.0
