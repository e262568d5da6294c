"""A whole model for CUDA, run without a GPU: its memory plan in NumPy, its kernels emulated."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax, sym
from tvm import tirx as tir

from tbn_tvm import pipeline
from tbn_tvm.relay_passes.lift_constants import lift_constants
from tbn_tvm.testing.cuda_emulator import Emulated


class EmulatedModel:
    """Follows ``main`` as the virtual machine would, each storage being a block of bytes.

    Parameters
    ----------
    mod : tvm.IRModule
        After the recognising passes.
    target : dict
        A CUDA target.
    batch : int, optional
        What a symbolic batch is fixed to.
    """

    def __init__(self, mod: tvm.IRModule, target: dict, batch: int | None = None) -> None:
        made = tvm.target.Target(target, host={"kind": "llvm"})
        lowered = pipeline.run(mod, pipeline.host_phases(made, batch), made)
        lowered, self.constants = lift_constants(lowered)
        planned = pipeline.run(lowered, pipeline.plan_phases(), made)
        self.main = planned["main"]
        kernels = {
            name: func.with_attr("global_symbol", name.name_hint)
            for name, func in planned.functions_items()
            if isinstance(func, tir.PrimFunc)
        }
        self.kernels = Emulated(tvm.IRModule(kernels), made)

    def __call__(self, *inputs: np.ndarray):
        """The outputs, a tuple where there are several.

        Parameters
        ----------
        *inputs : numpy.ndarray
            In the model's order.
        """
        self._values, self._extents = {}, sym.Analyzer()
        for param, array in zip(self.main.params, [*inputs, *self.constants], strict=True):
            self._values[param] = np.ascontiguousarray(array)
            for extent, size in zip(param.ty.shape.values, array.shape, strict=True):
                if isinstance(extent, tir.Var):
                    self._extents.bind(extent, tir.const(size, "int64"))
        for block in self.main.body.blocks:
            for binding in block.bindings:
                self._values[binding.var] = self._value(binding.value)
        result = self._value(self.main.body.body)
        return result[0] if isinstance(result, tuple) and len(result) == 1 else result

    def _value(self, expr):
        if isinstance(expr, relax.Var):
            return self._values[expr]
        if isinstance(expr, relax.Tuple):
            return tuple(self._value(field) for field in expr.fields)
        if isinstance(expr, relax.TupleGetItem):
            return self._value(expr.tuple_value)[expr.index]
        if isinstance(expr, relax.ShapeExpr):
            return tuple(int(self._extents.simplify(extent)) for extent in expr.values)
        assert isinstance(expr, relax.Call), expr
        if isinstance(expr.op, tvm.ir.GlobalVar):
            return self._launch(expr)
        args, name = expr.args, expr.op.name
        if name == "relax.memory.alloc_storage":
            # Never written bytes would be NaN in every float format.
            return np.full(self._value(args[0]), 0xFF, np.uint8)
        if name == "relax.memory.alloc_tensor":
            storage, offset = self._value(args[0]), int(args[1].value)
            return self._tensor(args[2], args[3], storage[offset:])
        if name == "relax.builtin.alloc_tensor":
            return self._tensor(args[0], args[1], None)
        assert name == "relax.reshape", name
        return self._value(args[0]).reshape(self._value(args[1]))

    def _tensor(self, shape, dtype, storage):
        shape, dtype = self._value(shape), np.dtype(str(dtype.value))
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if storage is None:
            storage = np.full(nbytes, 0xFF, np.uint8)
        return storage[:nbytes].view(dtype).reshape(shape)

    def _launch(self, call):
        arguments = [
            self._value(arg)
            if isinstance(arg.ty, relax.TensorType)
            else int(self._extents.simplify(arg))
            for arg in call.args
        ]
        self.kernels(*arguments, entry=call.op.name_hint)
