"""From the simplified float graph to integer operations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import tvm
from tvm import relax

from tbn_tvm import op
from tbn_tvm.errors import TbnError
from tbn_tvm.quantize.model import (
    EXPONENTIAL_BITS,
    Add,
    Clamp,
    Lookup,
    MaxPool,
    Mean,
    Move,
    Operation,
    QuantizedModel,
    Rescale,
    Softmax,
    TiledProduct,
)
from tbn_tvm.quantize.scheme import FixedPoint, Scheme, Tensor
from tbn_tvm.relay_passes._match import constant_array
from tbn_tvm.schedules.reference import Window

_MOVES = ("relax.reshape", "relax.flatten", "relax.squeeze", "relax.expand_dims")
_LARGEST_MAGNITUDE = 255
"""Of an int8 less its zero point."""

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


_FUNCTIONS = {
    "relax.nn.gelu": lambda x: x * 0.5 * (1 + _erf(x / math.sqrt(2))),
    "relax.nn.gelu_tanh": lambda x: (
        0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "relax.nn.silu": lambda x: x * _sigmoid(x),
    "relax.sigmoid": _sigmoid,
    "relax.tanh": np.tanh,
    "relax.exp": np.exp,
}
"""Functions of one number, which a table of 256 entries holds."""


def quantize(
    mod: tvm.IRModule, ranges: dict[str, tuple[float, float]], scheme: Scheme = Scheme.AFFINE
) -> QuantizedModel:
    """Choose scales and turn every step of a model into integer arithmetic.

    Parameters
    ----------
    mod : tvm.IRModule
        Simplified, one sample; what :func:`calibrate` had.
    ranges : dict
        From :func:`calibrate`.
    scheme : Scheme
        Of every int8 tensor.

    Raises
    ------
    TbnError
        For an operator that has no integer form here, by name.
    """
    return _Converter(mod, ranges, scheme).convert()


class _Converter:
    def __init__(self, mod, ranges, scheme: Scheme) -> None:
        self.main, self.ranges, self.scheme = mod["main"], ranges, scheme
        self.bindings = [b for block in self.main.body.blocks for b in block.bindings]
        self.uses = self._count_uses()
        self.tensors: dict[str, Tensor] = {}
        self.operations: list[Operation] = []
        self.names: dict[relax.Var, str] = {}

    def convert(self) -> QuantizedModel:
        inputs = {}
        for param in self.main.params:
            shape = tuple(int(extent) for extent in param.ty.shape.values)
            inputs[param.name] = shape
            self.names[param] = param.name
            self.tensors[param.name] = Tensor.covering(*self.ranges[param.name], self.scheme)
        result = self.main.body.body
        for binding in self.bindings:
            if binding.var.same_as(result) and isinstance(binding.value, relax.Tuple):
                result = binding.value
        fields = list(result.fields) if isinstance(result, relax.Tuple) else [result]
        self.results = set(fields)
        for binding in self.bindings:
            if not isinstance(binding.value, relax.Tuple):
                self._bind(binding.var, binding.value)
        outputs = tuple(self.names[var] for var in fields)
        return QuantizedModel(inputs, outputs, tuple(self.operations), self.tensors)

    def _count_uses(self) -> dict:
        uses: dict = {}
        for binding in self.bindings:
            # What the model returns is no use: nothing computes with it.
            for part in binding.value.args if isinstance(binding.value, relax.Call) else ():
                if isinstance(part, relax.Var):
                    uses[part] = uses.get(part, 0) + 1
        return uses

    def _bind(self, var: relax.Var, value: relax.Expr) -> None:
        if isinstance(value, relax.Var):
            self.names[var] = self.names[value]
            return
        name = value.op.name if isinstance(value, relax.Call) else type(value).__name__
        if op.is_product(value):
            self._product(var, value)
        elif name == "relax.add" and all(arg in self.names for arg in value.args):
            self._add(var, value)
        elif name in ("relax.nn.relu", "relax.clip"):
            self._activation(var, value, name)
        elif name in _FUNCTIONS:
            self._lookup(var, value, _FUNCTIONS[name])
        elif name == "relax.nn.leakyrelu":
            slope = float(value.attrs.alpha)
            self._lookup(var, value, lambda x: np.where(x < 0, slope * x, x))
        elif name == "relax.nn.softmax":
            self._softmax(var, value)
        elif name == "relax.nn.max_pool2d":
            window = _pool_window(value)
            self._keep(var, value.args[0], lambda i, o: MaxPool((i,), o, window))
        elif name == "relax.nn.avg_pool2d":
            self._mean(var, value, None, False, _pool_window(value))
        elif name in ("relax.mean", "relax.nn.adaptive_avg_pool2d"):
            self._mean(var, value, *_mean_axes(value, name), None)
        elif name in _MOVES:
            shape = _shape(var)
            self._keep(var, value.args[0], lambda i, o: Move((i,), o, None, shape))
        elif name == "relax.permute_dims":
            axes = value.attrs.axes
            rank = len(_shape(value.args[0]))
            order = tuple(int(a) for a in axes) if axes is not None else tuple(range(rank))[::-1]
            shape = _shape(var)
            self._keep(var, value.args[0], lambda i, o: Move((i,), o, order, shape))
        else:
            raise TbnError(
                f"{name.removeprefix('relax.')} has no integer form: with int8 activations a model "
                "has tiled layers, additions, activations (ReLU, clip, GELU, SiLU, sigmoid, tanh), "
                "softmax, pooling, means and changes of shape; "
                "leave out --activations int8, or remove the operator"
            )

    # -- operations ---------------------------------------------------------------------------

    def _product(self, var, call) -> None:
        product, x = op.product_of(call), self._input(call.args[0])
        alpha = constant_array(call.args[2])
        if alpha is None or constant_array(call.args[1]) is None:
            raise TbnError("a tiled layer whose weights are no constants cannot be quantized")
        bias = constant_array(call.args[3]) if len(call.args) == 4 else np.zeros(1)
        out = self._target(var, wide=self._is_end(var))
        factors = alpha.astype(np.float64) * x.scale / out.scale
        offsets = bias.astype(np.float64) / out.scale + out.zero_point
        fixed = FixedPoint.of(factors, offsets, product.geometry.n * _LARGEST_MAGNITUDE)
        self._emit(
            var,
            out,
            TiledProduct(
                (self.names[call.args[0]],),
                var.name,
                call.op.name,
                constant_array(call.args[1]),
                product,
                None if call.op.name == op.TILED_DENSE else op.window_of(call),
                x.zero_point,
                fixed,
                _whole(out),
            ),
        )

    def _add(self, var, call) -> None:
        a, b = (self._input(arg) for arg in call.args)
        if _shape(call.args[0]) != _shape(call.args[1]):
            raise TbnError("an addition of different shapes has no integer form here")
        out = self._target(var, wide=False)
        factors = np.array([a.scale, b.scale]) / out.scale
        fixed = FixedPoint.of(factors, np.array([out.zero_point]), 2 * _LARGEST_MAGNITUDE)
        names = tuple(self.names[arg] for arg in call.args)
        zeros = a.zero_point, b.zero_point
        self._emit(var, out, Add(names, var.name, zeros, fixed, _whole(out)))

    def _activation(self, var, call, name) -> None:
        """Bounds: of the operation before, where nothing else reads what it makes."""
        source = call.args[0]
        low, high = (0.0, math.inf) if name == "relax.nn.relu" else _clip_bounds(call)
        made = self.operations[-1] if self.operations else None
        x = self._input(source)
        fusable = (
            made is not None
            and made.output == self.names[source]
            and hasattr(made, "clamp")
            and self.uses.get(source, 0) == 1
            and source not in self.results
        )
        if fusable:
            # The operation before was given the range of what comes after: see _target.
            self.operations[-1] = replace(made, clamp=_bounded(x, low, high))
            self.names[var] = self.names[source]
            return
        out = self._target(var, wide=False)
        fixed = FixedPoint.of(
            np.array([x.scale / out.scale]), np.array([out.zero_point]), _LARGEST_MAGNITUDE
        )
        clamp = _bounded(out, low, high)
        operation = Rescale((self.names[source],), var.name, x.zero_point, fixed, clamp)
        self._emit(var, out, operation)

    def _lookup(self, var, call, function) -> None:
        x, out = self._input(call.args[0]), self._target(var, wide=self._is_end(var))
        integers = np.arange(-128, 128)
        table = out.quantize(function((integers - x.zero_point) * x.scale))
        self._emit(var, out, Lookup((self.names[call.args[0]],), var.name, table))

    def _softmax(self, var, call) -> None:
        x, shape = self._input(call.args[0]), _shape(call.args[0])
        axis = int(call.attrs.axis) % len(shape)
        if shape[axis] > 1 << EXPONENTIAL_BITS:
            raise TbnError(f"softmax over {shape[axis]} values has no integer form here")
        if self._is_end(var):
            bits, zero_point, dtype = 15, 0, "int16"
        elif self.scheme is Scheme.AFFINE:
            bits, zero_point, dtype = 8, -128, "int8"
        else:
            bits, zero_point, dtype = 7, 0, "int8"
        out = Tensor(2.0**-bits, zero_point, dtype)
        steps = np.exp(-x.scale * np.arange(256)) * 2.0**EXPONENTIAL_BITS
        table = np.rint(steps).astype(np.int32)
        clamp = _whole(out)
        names = (self.names[call.args[0]],)
        self._emit(var, out, Softmax(names, var.name, axis, table, bits, zero_point, clamp))

    def _mean(self, var, call, axes, keepdims, window) -> None:
        x = self._input(call.args[0])
        shape = _shape(call.args[0])
        count = math.prod(window.kernel) if window else math.prod(shape[axis] for axis in axes)
        out = self._target(var, wide=self._is_end(var))
        factors = np.array([x.scale / out.scale / count])
        fixed = FixedPoint.of(factors, np.array([out.zero_point]), count * _LARGEST_MAGNITUDE)
        self._emit(
            var,
            out,
            Mean(
                (self.names[call.args[0]],),
                var.name,
                tuple(axes or ()),
                keepdims,
                window,
                x.zero_point,
                fixed,
                _whole(out),
            ),
        )

    def _keep(self, var, source, make) -> None:
        """An operation whose output has its input's scale."""
        self._emit(var, self._input(source), make(self.names[source], var.name))

    # -- scales -------------------------------------------------------------------------------

    def _input(self, expr) -> Tensor:
        if expr not in self.names:
            raise TbnError("an operator on a constant has no integer form here")
        return self.tensors[self.names[expr]]

    def _emit(self, var, tensor: Tensor, operation: Operation) -> None:
        self.names[var] = var.name
        self.tensors[var.name] = tensor
        self.operations.append(operation)

    def _target(self, var, wide: bool) -> Tensor:
        """The scale of an output: that of the activation which alone reads it, if one does.

        What the model returns has 16 bits: nothing multiplies it further, and classes that are
        close stay apart.
        """
        low, high = self.ranges[var.name]
        follower = self._only_activation(var)
        if follower is not None:
            low, high = self.ranges[follower.name]
            wide = wide or self._is_end(follower)
        # Room for inputs beyond the samples' range, of which 16 bits have plenty.
        slack = 2.0 if wide else 1.0
        dtype = "int16" if wide else "int8"
        return Tensor.covering(low * slack, high * slack, self.scheme, dtype)

    def _is_end(self, var) -> bool:
        """Whether the model returns a value and computes nothing from it.

        Operations take int8, so an output that is also read on the way has no more.
        """
        return var in self.results and not self.uses.get(var, 0)

    def _only_activation(self, var):
        if self.uses.get(var, 0) != 1 or var in self.results:
            return None
        for binding in self.bindings:
            value = binding.value
            if (
                isinstance(value, relax.Call)
                and isinstance(value.op, tvm.ir.Op)
                and value.op.name in ("relax.nn.relu", "relax.clip")
                and value.args[0].same_as(var)
            ):
                return binding.var
        return None


def _whole(tensor: Tensor) -> Clamp:
    return Clamp(tensor.lowest, tensor.highest, tensor.dtype)


def _bounded(tensor: Tensor, low: float, high: float) -> Clamp:
    def step(real: float) -> int:
        if math.isinf(real):
            return tensor.highest if real > 0 else tensor.lowest
        return int(tensor.quantize(np.array(real)))

    return Clamp(step(low), step(high), tensor.dtype)


def _shape(expr) -> tuple[int, ...]:
    return tuple(int(extent) for extent in expr.ty.shape.values)


def _clip_bounds(call) -> tuple[float, float]:
    return tuple(float(arg.value) for arg in call.args[1:3])


def _pool_window(call) -> Window:
    attrs = call.attrs
    kernel, strides, padding, dilation = (
        tuple(int(value) for value in attrs[key])
        for key in ("pool_size", "strides", "padding", "dilation")
    )
    if call.op.name.endswith("avg_pool2d") and any(padding) and not attrs["count_include_pad"]:
        raise TbnError("average pooling that does not count its padding has no integer form here")
    if bool(attrs["ceil_mode"]):
        raise TbnError("pooling with ceil_mode has no integer form here")
    padding = padding if len(padding) == 4 else (*padding, *padding)
    return Window(kernel, strides, padding, dilation)


def _mean_axes(call, name: str) -> tuple[tuple[int, ...], bool]:
    rank = len(_shape(call.args[0]))
    if name == "relax.nn.adaptive_avg_pool2d":
        if tuple(int(v) for v in call.attrs["output_size"]) != (1, 1):
            raise TbnError("adaptive average pooling to other than 1x1 has no integer form here")
        return (rank - 2, rank - 1), True
    axes = call.attrs["axis"]
    chosen = range(rank) if axes is None else (int(axis) % rank for axis in axes)
    return tuple(chosen), bool(call.attrs["keepdims"])
