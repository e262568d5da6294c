"""LSTM, GRU and RNN."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import tvm
from onnx import NodeProto, ValueInfoProto, helper
from tvm import relax, sym
from tvm import tirx as tir

from tbn_tvm.errors import FormatError
from tbn_tvm.frontend.onnx.graph import describe
from tbn_tvm.frontend.recurrent import MAX_STEPS, Activation, Cell, Direction, recurrent


def _number(value: float, like: tvm.ir.Expr) -> tvm.ir.Expr:
    return tir.const(value, str(like.ty))


def _affine(x, alpha, beta):
    return _number(alpha, x) * x + _number(beta, x)


def _elu(x, alpha):
    below = tir.exp(tir.min(x, _number(0, x))) - _number(1, x)
    return tir.if_then_else(x < _number(0, x), _number(alpha, x) * below, x)


def _hard_sigmoid(x, alpha, beta):
    value, low, high = _affine(x, alpha, beta), _number(0, x), _number(1, x)
    return tir.if_then_else(value > high, high, tir.if_then_else(value < low, low, value))


def _leaky_relu(x, alpha):
    return tir.if_then_else(x < _number(0, x), _number(alpha, x) * x, x)


def _relu(x):
    return tir.max(x, _number(0, x))


def _scaled_tanh(x, alpha, beta):
    return _number(alpha, x) * tir.tanh(_number(beta, x) * x)


def _softplus(x):
    """By the exponential of what is not positive, which does not overflow."""
    size = tir.max(x, -x)
    return tir.max(x, _number(0, x)) + tir.log(_number(1, x) + tir.exp(-size))


def _softsign(x):
    return x / (_number(1, x) + tir.max(x, -x))


def _thresholded_relu(x, alpha):
    return tir.if_then_else(x > _number(alpha, x), x, _number(0, x))


_ACTIVATIONS: dict[str, tuple[Callable, tuple[float | None, ...]]] = {
    "affine": (_affine, (None, None)),
    "elu": (_elu, (1.0,)),
    "hardsigmoid": (_hard_sigmoid, (0.2, 0.5)),
    "leakyrelu": (_leaky_relu, (0.01,)),
    "relu": (_relu, ()),
    "scaledtanh": (_scaled_tanh, (None, None)),
    "sigmoid": (tir.sigmoid, ()),
    "softplus": (_softplus, ()),
    "softsign": (_softsign, ()),
    "tanh": (tir.tanh, ()),
    "thresholdedrelu": (_thresholded_relu, (1.0,)),
}
"""By name in lower case, with the defaults of alpha and beta; None where the standard has none."""

_DIRECTIONS = {b"forward": (False,), b"reverse": (True,), b"bidirectional": (False, True)}
"""Whether each direction goes backward."""


def _activations(
    attrs: dict, defaults: tuple[str, ...], directions: int
) -> list[tuple[Activation, ...]]:
    """The functions of each direction, with their parameters; these are given in one row, for
    those functions that take them."""
    given = attrs.get("activations") or ()
    names = [name.decode(errors="replace") for name in given] or list(defaults) * directions
    if len(names) != len(defaults) * directions:
        raise ValueError(
            f"{len(names)} activations: expected {len(defaults)} for each of {directions} "
            "direction(s)"
        )
    rows = [list(attrs.get(f"activation_{which}") or ()) for which in ("alpha", "beta")]
    counts = [len(row) for row in rows]
    made = []
    for name in names:
        if name.lower() not in _ACTIVATIONS:
            raise ValueError(
                f"activation {name!r} is not supported: expected one of "
                f"{', '.join(sorted(_ACTIVATIONS))}"
            )
        function, parameters = _ACTIVATIONS[name.lower()]
        values = []
        for which, row, default in zip(("alpha", "beta"), rows, parameters, strict=False):
            value = row.pop(0) if row else default
            if value is None:
                raise ValueError(f"activation {name!r} needs activation_{which}")
            values.append(value)
        made.append(_bound(function, values))
    for which, row, count in zip(("alpha", "beta"), rows, counts, strict=True):
        if row:
            raise ValueError(
                f"activation_{which} has {count} values, and the activations {', '.join(names)} "
                f"take {count - len(row)}"
            )
    each = len(defaults)
    return [tuple(made[at : at + each]) for at in range(0, len(made), each)]


def _bound(function: Callable, values: list[float]) -> Activation:
    return lambda x: function(x, *values)


def _cell(kind: str, attrs: dict) -> Cell:
    clip = attrs.get("clip")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip {clip}: expected a positive threshold")
    return Cell(
        kind,
        {"lstm": "iofc", "gru": "zrh", "rnn": "h"}[kind],
        clip,
        bool(attrs.get("input_forget", 0)),
        bool(attrs.get("linear_before_reset", 0)),
    )


def _convert(
    kind: str, defaults: tuple[str, ...], bb, inputs, attrs: dict, _opset: int
) -> relax.Expr:
    given = [*inputs, *[None] * 8][:8]
    x, w, r, b, lengths, h, c, peepholes = given
    backward = _DIRECTIONS.get(attrs.get("direction", b"forward"))
    if backward is None:
        raise ValueError(f"direction {attrs['direction'].decode(errors='replace')!r} is unknown")
    cell, layout = _cell(kind, attrs), attrs.get("layout", 0)
    if layout not in (0, 1):
        raise ValueError(f"layout {layout}: expected 0 or 1")
    functions = _activations(attrs, defaults, len(backward))
    if layout:
        x, h, c = (
            None if value is None else bb.emit(relax.op.permute_dims(value, [1, 0, 2]))
            for value in (x, h, c)
        )
    _check_shapes(cell, len(backward), attrs, x, w, r, b, lengths, h, c, peepholes)
    lengths = _lengths(lengths, x)
    hidden = int(r.ty.shape.values[2])
    rows = cell.gates * hidden
    directions = []
    for at, flag in enumerate(backward):
        part = partial(_part, bb, at)
        both = part(b)
        directions.append(
            Direction(
                part(w),
                part(r),
                functions[at],
                None if both is None else bb.emit(relax.op.strided_slice(both, [0], [0], [rows])),
                None
                if both is None
                else bb.emit(relax.op.strided_slice(both, [0], [rows], [2 * rows])),
                part(h),
                part(c),
                None
                if peepholes is None
                else bb.emit(relax.op.reshape(part(peepholes), [3, hidden])),
                flag,
            )
        )
    every, *last = recurrent(bb, cell, directions, x, lengths)
    last = [state for state in last if state is not None]
    if layout:
        every = bb.emit(relax.op.permute_dims(every, [2, 0, 1, 3]))
        last = [bb.emit(relax.op.permute_dims(state, [1, 0, 2])) for state in last]
    return relax.Tuple([every, *last])


def _lengths(lengths: relax.Expr | None, x: relax.Expr) -> relax.Expr | None:
    """Those of the sequences, None where all are of all steps."""
    steps = x.ty.shape.values[0]
    if not isinstance(lengths, tvm.ir.GenericConst) or not isinstance(steps, tir.IntImm):
        return lengths
    held = lengths.value.numpy()
    if held.min() < 0 or held.max() > int(steps):
        raise ValueError(
            f"sequence_lens from {held.min()} to {held.max()}: expected 0 to {int(steps)}"
        )
    return None if held.min() == int(steps) else lengths


def _part(bb, at: int, stacked: relax.Expr | None) -> relax.Expr | None:
    """What one direction takes of a tensor that holds all of them."""
    if stacked is None:
        return None
    if isinstance(stacked, tvm.ir.GenericConst):
        return relax.const(stacked.value.numpy()[at])
    return bb.emit(
        relax.op.squeeze(bb.emit(relax.op.strided_slice(stacked, [0], [at], [at + 1])), [0])
    )


def _check_shapes(
    cell: Cell, directions: int, attrs: dict, x, w, r, b, lengths, h, c, peepholes
) -> None:
    """ONNX's own inference checks no weights of these operators."""
    hidden = r.ty.shape.values[-1] if r.ty.ndim else 0
    width, batch = x.ty.shape.values[2], x.ty.shape.values[1]
    rows = cell.gates * hidden
    if "hidden_size" in attrs and not _same(hidden, attrs["hidden_size"]):
        raise ValueError(f"hidden_size {attrs['hidden_size']}, and R is of {_shown(hidden)}")
    wanted = {
        "W": (w, [directions, rows, width]),
        "R": (r, [directions, rows, hidden]),
        "B": (b, [directions, 2 * rows]),
        "sequence_lens": (lengths, [batch]),
        "initial_h": (h, [directions, batch, hidden]),
        "initial_c": (c, [directions, batch, hidden]),
        "P": (peepholes, [directions, 3 * hidden]),
    }
    for name, (value, shape) in wanted.items():
        if value is None:
            continue
        extents = list(value.ty.shape.values)
        if len(extents) != len(shape) or not all(map(_same, extents, shape)):
            raise ValueError(
                f"{name} has shape [{', '.join(map(_shown, extents))}]: expected "
                f"[{', '.join(map(_shown, shape))}]"
            )


def _shown(extent) -> str:
    return str(int(extent)) if isinstance(extent, (int, tir.IntImm)) else str(extent)


def _same(extent, wanted) -> bool:
    """Whether two extents are one number, or the same free size."""
    return sym.Analyzer().can_prove_equal(extent, wanted)


def check_steps(nodes: Iterable[NodeProto], types: dict[str, ValueInfoProto]) -> None:
    """Bound what recurrent nodes are unrolled to, in the whole model.

    Raises
    ------
    FormatError
        Where that is too many steps.
    """
    total = 0
    for node in nodes:
        if node.op_type not in RECURRENT or not node.input or node.input[0] not in types:
            continue
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        extents = types[node.input[0]].type.tensor_type.shape.dim
        steps = extents[1 if attrs.get("layout", 0) else 0].dim_value if len(extents) == 3 else 0
        total += steps * len(_DIRECTIONS.get(attrs.get("direction", b"forward"), ()))
        if total > MAX_STEPS:
            raise FormatError(
                f"{describe(node)}: the model's recurrent layers have more than {MAX_STEPS} steps, "
                "each of which is compiled; split the sequence and pass the states on"
            )


RECURRENT = {
    "GRU": partial(_convert, "gru", ("Sigmoid", "Tanh")),
    "LSTM": partial(_convert, "lstm", ("Sigmoid", "Tanh", "Tanh")),
    "RNN": partial(_convert, "rnn", ("Tanh",)),
}
"""Converters."""
