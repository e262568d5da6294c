"""Turn constants into parameters, so that an artifact stores them beside the code."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from tbn_tvm.relay_passes._match import constant_array


def lift_constants(mod: tvm.IRModule) -> tuple[tvm.IRModule, list[np.ndarray]]:
    """Make every constant argument of a kernel call a trailing parameter of ``main``.

    Parameters
    ----------
    mod : tvm.IRModule
        Lowered: ``main`` calls kernels with ``call_tir``.

    Returns
    -------
    tvm.IRModule
        With ``main(*inputs, *constants)`` and the attribute ``num_input``.
    list of numpy.ndarray
        The constants, in the order of the new parameters; equal ones once.
    """
    lifter = _Lifter(mod)
    return lifter.transform(), lifter.arrays


@mutator
class _Lifter(PyExprMutator):
    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self.mod = mod
        self.arrays: list[np.ndarray] = []
        self._params: dict[tuple, relax.Var] = {}

    def transform(self) -> tvm.IRModule:
        main = self.mod["main"]
        body = self.visit_expr(main.body)
        params = [*main.params, *self._params.values()]
        lifted = relax.Function(params, body, main.ret_ty, main.is_pure, main.attrs)
        lifted = lifted.with_attr("num_input", len(main.params))
        self.builder_.update_func(self.mod.get_global_var("main"), lifted)
        return self.builder_.get()

    def visit_generic_const_(self, constant) -> relax.Expr:
        array = constant_array(constant)
        if array is None:
            return constant
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._params:
            self._params[key] = relax.Var(f"constant_{len(self.arrays)}", constant.ty)
            self.arrays.append(array)
        return self._params[key]
