"""Fix a model's symbolic dimensions."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm import tirx as tir


class BindBatch:
    """Replace every symbolic dimension of the inputs of ``main`` by a number.

    Parameters
    ----------
    size : int
        What the dimensions become. Bare-metal programs are planned for one size, usually 1.
    """

    def __new__(cls, size: int = 1) -> tvm.transform.Pass:
        @tvm.transform.module_pass(opt_level=0, name="BindBatch")
        def bind(mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
            symbols = {
                extent
                for param in mod["main"].params
                if isinstance(param.ty, relax.TensorType) and param.ty.shape is not None
                for extent in param.ty.shape.values
                if isinstance(extent, tir.Var)
            }
            if not symbols:
                return mod
            return relax.transform.BindSymbolicVars({s: size for s in symbols}, "main")(mod)

        return bind
