"""Run an imported model at once, with no artifact: what checks and comparisons need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tbn_tvm._tvm import told_as_ours

if TYPE_CHECKING:
    from tbn_tvm.importing import Imported


def evaluate(model: Imported, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A model's outputs, computed by code for any CPU that is compiled into this process.

    Parameters
    ----------
    model : Imported
        Free dimensions stay free.
    inputs : sequence of numpy.ndarray
        In the order of the signature, and as it asks for them.

    Raises
    ------
    TbnError
        Where TVM cannot compile or run the model.
    """
    import tvm
    from tvm import relax

    from tbn_tvm import pipeline

    arrays = model.signature.bind(tuple(inputs), {})
    # Compiled to be run once.
    target = tvm.target.Target({"kind": "llvm", "opt-level": 0})
    with told_as_ours("TVM cannot compile the model"):
        mod = pipeline.run(model.mod, pipeline.host_phases(target), target)
        mod = pipeline.run(mod, pipeline.plan_phases(), target)
        executable = tvm.compile(mod, target, relax_pipeline=pipeline.finish_pipeline())
    with told_as_ours("the model cannot be run"):
        machine = relax.VirtualMachine(executable, tvm.cpu())
        results = machine["main"](*[tvm.runtime.tensor(array) for array in arrays])
    tensors = [results] if isinstance(results, tvm.runtime.Tensor) else list(results)
    return [tensor.numpy() for tensor in tensors]
