"""Fix a model's symbolic dimensions."""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import relax
from tvm import tirx as tir

from tbn_tvm.relay_passes._match import is_call


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
            mod = relax.transform.BindSymbolicVars({s: size for s in symbols}, "main")(mod)
            return _bind_kernels(mod)

        return bind


def _bind_kernels(mod: tvm.IRModule) -> tvm.IRModule:
    """Give kernels that came with the model the sizes that they are called with.

    Operators become kernels later, for those sizes; what a frontend wrote as a kernel has free
    extents of its own, which code for bare metal has no value for and fusion none to compare with.
    """
    called: dict[tvm.ir.GlobalVar, list] = {}
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            if is_call(binding.value, "relax.call_tir"):
                kernel, arguments = binding.value.args[:2]
                results = binding.value.ty_args[0]
                results = results.fields if isinstance(results, relax.TupleType) else [results]
                types = [*(argument.ty for argument in arguments.fields), *results]
                called.setdefault(kernel, []).append(types)
    for kernel, signatures in called.items():
        # One of several sizes keeps them free.
        if all(tvm_ffi.structural_equal(types, signatures[0]) for types in signatures):
            mod[kernel] = _with_sizes(mod[kernel], signatures[0])
    return mod


def _with_sizes(kernel: tir.PrimFunc, types: list[relax.TensorType]) -> tir.PrimFunc:
    for at, held in enumerate(types):
        param = kernel.params[at]  # anew, since the last one may have fixed it as well
        known = isinstance(held.shape, relax.ShapeExpr) and all(
            isinstance(extent, tir.IntImm) for extent in held.shape.values
        )
        if known and any(not isinstance(extent, tir.IntImm) for extent in param.shape):
            # Of the same type, int64, as the extents of the kernel that stay.
            kernel = kernel.specialize(
                {param: tir.decl_buffer(held.shape.values, param.dtype, param.name)}
            )
    return kernel
