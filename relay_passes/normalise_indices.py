"""Keep indices inside the tensors they read, counted from the front as kernels do."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm import tirx as tir
from tvm.relax.expr_functor import PyExprMutator, mutator

from tbn_tvm.relay_passes._match import constant_array, is_call, rewrite_functions


@tvm.transform.module_pass(opt_level=0, name="NormaliseIndices")
class NormaliseIndices:
    """Add the extent of the axis to negative constant indices of ``take`` and ``index_tensor``.

    Frontends pass PyTorch's negative indices on as they are, and TVM's kernels for these
    operators read memory at whatever index they are given. Those of ``take`` are told to clip
    indices, so that one which only data knows reads no memory that is not the tensor's.

    Raises
    ------
    ValueError
        For a negative index along an axis of free size.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return rewrite_functions(mod, _Normaliser(mod))


@mutator
class _Normaliser(PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if is_call(call, "relax.take"):
            data, indices = call.args
            axis = None if call.attrs.axis is None else int(call.attrs.axis)
            extents = data.ty.shape.values
            extent = extents[axis or 0]
            return relax.op.take(data, self._from_front(indices, extent), axis, mode="clip")
        if is_call(call, "relax.index_tensor") and isinstance(call.args[1], relax.Tuple):
            data, indices = call.args
            fields = [
                self._from_front(field, extent)
                for field, extent in zip(indices.fields, data.ty.shape.values, strict=False)
            ]
            return _with_args(call, [data, relax.Tuple(fields)])
        return call

    def _from_front(self, indices: relax.Expr, extent) -> relax.Expr:
        value = self.lookup_binding(indices) if isinstance(indices, relax.Var) else indices
        array = constant_array(value)
        if array is None or array.dtype.kind != "i" or not (array < 0).any():
            return indices
        if not isinstance(extent, tir.IntImm):
            raise ValueError(
                f"the model takes index {int(array.min())} along an axis of free size ({extent}): "
                "export it with that axis fixed"
            )
        return relax.const(np.where(array < 0, array + int(extent), array).astype(array.dtype))


def _with_args(call: relax.Call, args: list[relax.Expr]) -> relax.Call:
    return relax.Call(call.op, args, call.attrs, call.ty_args, call.span)
