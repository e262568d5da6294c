"""Keep indices inside the tensors they read or write, counted from the front as kernels do."""

from __future__ import annotations

import numpy as np
import tvm
import tvm_ffi
from tvm import relax
from tvm import tirx as tir
from tvm.relax.expr_functor import PyExprMutator, mutator

from tbn_tvm.relay_passes._match import constant_array, is_call, rewrite_functions

_ALONG_AXIS = ("relax.gather_elements", "relax.scatter_elements")
_COORDINATES = ("relax.gather_nd", "relax.scatter_nd")
_ONE_AN_AXIS = ("relax.index_put", "relax.index_tensor")


@tvm.transform.module_pass(opt_level=0, name="NormaliseIndices")
class NormaliseIndices:
    """Bring the indices of gathers and scatters inside the tensors they point into.

    Frontends pass PyTorch's indices on as they are, and TVM's kernels for these operators read
    or write memory at whatever index they are given. Negative indices count from the end; those
    still outside point at the first or the last element, which ``take`` sees to itself where
    they are constant.

    Raises
    ------
    ValueError
        For a constant negative index of ``take`` along an axis of free size, and for coordinates
        (``gather_nd``, ``scatter_nd``) of which one is along such an axis.
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
            counted = self._from_front(indices, extent)
            return relax.op.take(data, counted, axis, mode="clip")
        if not any(is_call(call, name) for name in _ALONG_AXIS + _COORDINATES + _ONE_AN_AXIS):
            return call
        data, indices, *rest = call.args
        if data.ty.shape is None:
            return call
        extents = list(data.ty.shape.values)
        if call.op.name in _ALONG_AXIS:
            inside = self._inside(indices, [extents[int(call.attrs.axis)]])
        elif call.op.name in _COORDINATES:
            first = int(getattr(call.attrs, "batch_dims", 0))
            count = int(indices.ty.shape.values[-1])
            inside = self._inside(indices, extents[first : first + count])
        elif isinstance(indices.ty, relax.TupleType):
            fields = self._fields(indices)
            inside = relax.Tuple(
                [
                    self._inside(field, [extent])
                    for field, extent in zip(fields, extents, strict=False)
                ]
            )
        else:
            inside = self._inside(indices, extents[:1])
        return _with_args(call, [data, inside, *rest])

    def _fields(self, indices: relax.Expr) -> list[relax.Expr]:
        value = self._value(indices)
        if isinstance(value, relax.Tuple):
            return list(value.fields)
        return [
            self.builder_.emit(relax.TupleGetItem(indices, at))
            for at in range(len(indices.ty.fields))
        ]

    def _value(self, expr: relax.Expr) -> relax.Expr | None:
        return self.lookup_binding(expr) if isinstance(expr, relax.Var) else expr

    def _inside(self, indices: relax.Expr, extents: list) -> relax.Expr:
        """Indices along axes of these extents: one axis, or one for each place of the last axis."""
        dtype = str(indices.ty.dtype)
        if dtype == "bool":
            return indices
        static = all(isinstance(extent, tir.IntImm) for extent in extents)
        if not static and len(extents) > 1:
            raise ValueError(
                f"the model takes coordinates along an axis of free size ({extents}): "
                "export it with that axis fixed"
            )
        if static:
            sizes = np.array([int(extent) for extent in extents])
            array = constant_array(self._value(indices))
            if array is not None:
                array = array.astype("int64")
                inside = np.clip(np.where(array < 0, array + sizes, array), 0, sizes - 1)
                return indices if (inside == array).all() else relax.const(inside, "int64")
        if dtype not in ("int32", "int64") or not static:
            indices = self._as_int64(indices)
            dtype = "int64"
        if static:
            sizes = (sizes[0] if len(extents) == 1 else sizes).astype(dtype)
            low, high, size = (relax.const(bound, dtype) for bound in (-sizes, sizes - 1, sizes))
        else:
            (extent,) = extents
            low, high, size = -extent, extent - 1, extent
        if self._is_inside(indices, low, high):
            return indices
        emit = self.builder_.emit
        near = emit(relax.op.minimum(emit(relax.op.maximum(indices, low)), high))
        negative = emit(relax.op.less(near, relax.const(0, dtype)))
        return emit(relax.op.where(negative, emit(relax.op.add(near, size)), near))

    def _as_int64(self, indices: relax.Expr) -> relax.Expr:
        if str(indices.ty.dtype) == "int64":
            return indices
        return self.builder_.emit(relax.op.astype(indices, "int64"))

    def _is_inside(self, indices: relax.Expr, low, high) -> bool:
        """Whether this pass made them, between the same bounds."""
        chosen = self._value(indices)
        near = self._value(chosen.args[2]) if is_call(chosen, "relax.where") else None
        above = self._value(near.args[0]) if is_call(near, "relax.minimum") else None
        return (
            is_call(above, "relax.maximum")
            and tvm_ffi.structural_equal(above.args[1], low)
            and tvm_ffi.structural_equal(near.args[1], high)
        )

    def _from_front(self, indices: relax.Expr, extent) -> relax.Expr:
        array = constant_array(self._value(indices))
        if array is None:
            return self._inside(indices, [extent])
        if array.dtype.kind != "i" or not (array < 0).any():
            return indices
        if not isinstance(extent, tir.IntImm):
            raise ValueError(
                f"the model takes index {int(array.min())} along an axis of free size ({extent}): "
                "export it with that axis fixed"
            )
        counted = np.where(array < 0, array + int(extent), array)
        return relax.const(counted.astype(array.dtype), str(array.dtype))


def _with_args(call: relax.Call, args: list[relax.Expr]) -> relax.Call:
    return relax.Call(call.op, args, call.attrs, call.ty_args, call.span)
