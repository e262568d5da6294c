"""The range of every tensor of a model, from samples run through its float graph."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm import tirx as tir

from tbn_tvm.errors import InputError


def calibrate(mod: tvm.IRModule, samples: list[np.ndarray]) -> dict[str, tuple[float, float]]:
    """Run samples and note the smallest and largest value of each tensor.

    Parameters
    ----------
    mod : tvm.IRModule
        Simplified; ``main`` takes one sample.
    samples : list of numpy.ndarray
        One array an input of the model, samples along the first axis.

    Returns
    -------
    dict of str to (float, float)
        By the name of the graph's variable, inputs included.

    Raises
    ------
    InputError
        Where there is no sample, or one is not finite.
    """
    count = len(samples[0]) if samples else 0
    if not count:
        raise InputError("calibration needs at least one sample")
    watched, observer = _observer(mod)
    names = [param.name for param in mod["main"].params]
    ranges: dict[str, tuple[float, float]] = {}

    def note(name: str, values: np.ndarray) -> None:
        low, high = float(values.min()), float(values.max())
        if not np.isfinite([low, high]).all():
            raise InputError(f"calibration: {name} is not finite; check the samples")
        known = ranges.get(name, (low, high))
        ranges[name] = min(known[0], low), max(known[1], high)

    run = relax.VirtualMachine(observer, tvm.cpu())["main"]
    for index in range(count):
        arrays = [np.ascontiguousarray(x[index : index + 1], np.float32) for x in samples]
        for name, x in zip(names, arrays, strict=True):
            note(name, x)
        for name, y in zip(watched, run(*map(tvm.runtime.tensor, arrays)), strict=True):
            note(name, y.numpy())
    return ranges


def _observer(mod: tvm.IRModule) -> tuple[list[str], tvm.runtime.Executable]:
    """The model compiled to return every float tensor it computes, and their names."""
    from tbn_tvm import pipeline
    from tbn_tvm.compiler import resolve_target

    mod = relax.transform.ToNonDataflow()(mod)
    main = mod["main"]
    watched = [
        binding.var
        for block in main.body.blocks
        for binding in block.bindings
        if isinstance(binding.var.ty, relax.TensorType) and str(binding.var.ty.dtype) == "float32"
    ]
    body = relax.SeqExpr(main.body.blocks, relax.Tuple(watched))
    types = relax.TupleType([var.ty for var in watched])
    mod = tvm.IRModule({"main": relax.Function(main.params, body, types, main.is_pure, main.attrs)})
    target = tvm.target.Target(resolve_target("host"))
    with target:
        mod = tvm.transform.Sequential(pipeline.lower(target))(relax.transform.Normalize()(mod))
        return [var.name for var in watched], tvm.compile(mod, target)


def is_one_sample(mod: tvm.IRModule) -> bool:
    """Whether every shape is a number."""
    return all(
        isinstance(extent, tir.IntImm)
        for param in mod["main"].params
        for extent in param.ty.shape.values
    )
