"""Recurrent layers over a sequence of fixed length: LSTM, GRU and the plain network.

The inputs of all steps are projected by one product. A step is then the product of the hidden
state with the recurrent weight, which what follows recognises where it is tiled, and one kernel
for all that is element by element. That kernel reads its step's rows of the projection by a
number that it is given, so that all steps share it: code does not grow with their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax, te
from tvm import tirx as tir

from tbn_tvm.frontend.shared_kernels import shared_call, stacked

MAX_STEPS = 2048
"""Steps of one layer, both directions together: each is compiled into two kernel calls or more."""

MAX_ELEMENTS = 2**31
"""Elements of the projection of all inputs."""

Activation = Callable[[tvm.ir.Expr], tvm.ir.Expr]


@dataclass(frozen=True)
class Cell:
    """What all directions of a layer share.

    Attributes
    ----------
    kind : str
        ``"lstm"``, ``"gru"`` or ``"rnn"``.
    order : str
        The gates as the weights stack them: ``i``, ``f``, ``o`` and ``c`` (the candidate) of an
        LSTM, ``z``, ``r`` and ``h`` (the candidate) of a GRU, ``h`` of a plain network.
    clip : float, optional
        Magnitude that the arguments of the gates' activations are clipped to.
    coupled : bool
        Whether an LSTM forgets by one less what it lets in.
    reset_after : bool
        Whether a GRU's reset gate scales the recurrent product, rather than the state before it.
    """

    kind: str
    order: str
    clip: float | None = None
    coupled: bool = False
    reset_after: bool = False

    @property
    def gates(self) -> int:
        """How many blocks of rows the weights have."""
        return len(self.order)


@dataclass(frozen=True)
class Direction:
    """One direction of a layer; vectors have an element a row of the weights.

    Attributes
    ----------
    w, r : relax.Expr
        Of shape (gates * hidden, inputs) and (gates * hidden, hidden).
    activations : tuple of callable
        Of the gates, of the candidate and, for an LSTM, of the cell state; of the candidate alone
        for a plain network.
    bias, recurrent_bias : relax.Expr, optional
        Added to the two products.
    h, c : relax.Expr, optional
        Initial states of shape (batch, hidden); zeros where left out.
    peepholes : relax.Expr, optional
        Of shape (3, hidden): of the input, output and forget gate.
    backward : bool
        From the last step to the first.
    """

    w: relax.Expr
    r: relax.Expr
    activations: tuple[Activation, ...]
    bias: relax.Expr | None = None
    recurrent_bias: relax.Expr | None = None
    h: relax.Expr | None = None
    c: relax.Expr | None = None
    peepholes: relax.Expr | None = None
    backward: bool = False


def recurrent(
    bb: relax.BlockBuilder,
    cell: Cell,
    directions: Sequence[Direction],
    x: relax.Expr,
    lengths: relax.Expr | None = None,
) -> tuple[relax.Expr, relax.Expr, relax.Expr | None]:
    """Run a layer over a sequence.

    Parameters
    ----------
    bb : relax.BlockBuilder
        Takes the bindings.
    cell : Cell
        The layer's equations.
    directions : sequence of Direction
        One or two.
    x : relax.Expr
        Of shape (steps, batch, inputs), its steps fixed; 16-bit floats are computed in float32.
    lengths : relax.Expr, optional
        Integers of shape (batch,): later steps leave the states alone and put out zeros. A
        sequence of no steps has zeros as its last states.

    Returns
    -------
    tuple of relax.Expr
        All hidden states, of shape (steps, directions, batch, hidden), and the last hidden and
        cell states, of shape (directions, batch, hidden); no cell states but of an LSTM.

    Raises
    ------
    ValueError
        Where the number of steps or inputs is free, or the steps are too many.
    """
    dtype = x.ty.dtype.dtype
    steps = _steps(x, len(directions))
    _check_sizes(x, cell, directions[0])
    if lengths is not None:
        lengths = _as(bb, lengths, "int32")
    runs = [_Run(bb, cell, d, _exact(bb, x), lengths).over(steps) for d in directions]
    along = [y for row in zip(*(outputs for outputs, _h, _c in runs), strict=True) for y in row]
    batch, hidden = runs[0][1].ty.shape.values
    every = bb.emit(relax.op.reshape(stacked(bb, along), [steps, len(directions), batch, hidden]))
    states = [stacked(bb, [h for _outputs, h, _c in runs])]
    if cell.kind == "lstm":
        states.append(stacked(bb, [c for _outputs, _h, c in runs]))
    states = [_begun(bb, state, lengths) for state in states]
    made = [_as(bb, value, dtype) for value in (every, *states)]
    return made[0], made[1], made[2] if len(made) == 3 else None


def _begun(bb: relax.BlockBuilder, state: relax.Expr, lengths: relax.Expr | None) -> relax.Expr:
    """Last states, zero of sequences that never began, as ONNX Runtime has it."""
    if lengths is None:
        return state
    some = bb.emit(relax.op.greater(lengths, relax.const(0, "int32")))
    some = bb.emit(relax.op.expand_dims(some, [0, 2]))
    return bb.emit(relax.op.where(some, state, relax.const(0, state.ty.dtype.dtype)))


def _steps(x: relax.Expr, directions: int) -> int:
    steps = x.ty.shape.values[0]
    if not isinstance(steps, tir.IntImm):
        raise ValueError(
            f"a sequence of free length ({steps}) cannot be unrolled: fix its length, and mask "
            "shorter sequences"
        )
    if int(steps) * directions > MAX_STEPS:
        raise ValueError(
            f"{int(steps)} steps in {directions} direction(s): expected at most {MAX_STEPS} in "
            "all, each of which is compiled; split the sequence and pass the states on"
        )
    return int(steps)


def _check_sizes(x: relax.Expr, cell: Cell, direction: Direction) -> None:
    sizes = [*x.ty.shape.values[:2], direction.w.ty.shape.values[0]]
    elements = math.prod(int(size) for size in sizes if isinstance(size, tir.IntImm))
    if elements > MAX_ELEMENTS:
        raise ValueError(
            f"the projection of all inputs has {elements:,} elements: expected at most "
            f"{MAX_ELEMENTS:,}"
        )
    if not isinstance(x.ty.shape.values[2], tir.IntImm):
        raise ValueError(f"inputs of free width ({x.ty.shape.values[2]}) are not supported")


def _exact(bb: relax.BlockBuilder, x: relax.Expr) -> relax.Expr:
    return _as(bb, x, "float32") if x.ty.dtype.dtype in ("float16", "bfloat16") else x


def _as(bb: relax.BlockBuilder, x: relax.Expr, dtype: str) -> relax.Expr:
    return x if x.ty.dtype.dtype == dtype else bb.emit(relax.op.astype(x, dtype))


class _Run:
    """One direction over the sequence, everything in one dtype."""

    def __init__(
        self,
        bb: relax.BlockBuilder,
        cell: Cell,
        direction: Direction,
        x: relax.Expr,
        lengths: relax.Expr | None,
    ) -> None:
        self._bb, self._cell, self._direction = bb, cell, direction
        self._lengths = lengths
        self._dtype = x.ty.dtype.dtype
        self._kernels: dict[tuple, relax.Call] = {}
        self._batch = x.ty.shape.values[1]
        self._hidden = int(direction.r.ty.shape.values[1])
        self._inner = self._bias_inside()
        self._projection = self._projected(x)
        r = self._take(direction.r)
        if cell.kind == "gru" and not cell.reset_after:
            # The candidate's product waits for the reset gate.
            split = cell.order.index("h") * self._hidden
            if cell.order[-1] != "h":
                raise ValueError(f"a GRU of gates {cell.order!r}: expected the candidate last")
            self._recurrent = self._transposed(self._rows(r, 0, split))
            self._candidate = self._transposed(self._rows(r, split, split + self._hidden))
        else:
            self._recurrent = self._transposed(r)

    def over(self, steps: int) -> tuple[list[relax.Expr], relax.Expr, relax.Expr | None]:
        """The hidden states of all steps by position, and the last states."""
        states = [self._state(self._direction.h)]
        if self._cell.kind == "lstm":
            states.append(self._state(self._direction.c))
        outputs: list[relax.Expr] = []
        for step in reversed(range(steps)) if self._direction.backward else range(steps):
            output, *states = self._step(step, states)
            outputs.append(output)
        if self._direction.backward:
            outputs.reverse()
        return outputs, states[0], states[1] if len(states) == 2 else None

    # -- what is the same for all steps ---------------------------------------------------

    def _take(self, given: relax.Expr) -> relax.Expr:
        return _as(self._bb, given, self._dtype)

    def _rows(self, x: relax.Expr, start: int, stop: int) -> relax.Expr:
        return self._bb.emit(relax.op.strided_slice(x, [0], [start], [stop]))

    def _transposed(self, weight: relax.Expr) -> relax.Expr:
        return self._bb.emit(relax.op.permute_dims(weight))

    def _bias_inside(self) -> relax.Expr | None:
        """The part of the recurrent bias that a gate scales: (hidden,) of the candidate."""
        bias = self._direction.recurrent_bias
        if bias is None or self._cell.kind != "gru" or not self._cell.reset_after:
            return None
        at = self._cell.order.index("h") * self._hidden
        return self._rows(self._take(bias), at, at + self._hidden)

    def _projected(self, x: relax.Expr) -> relax.Expr:
        """All steps' inputs times their weight, with every bias that is simply added."""
        emit, bias = self._bb.emit, self._direction.bias
        product = emit(
            relax.op.matmul(
                x, self._transposed(self._take(self._direction.w)), out_dtype=self._dtype
            )
        )
        biases = [] if bias is None else [self._take(bias)]
        if self._direction.recurrent_bias is not None:
            recurrent_bias = self._take(self._direction.recurrent_bias)
            if self._inner is not None:
                mask = np.repeat([gate != "h" for gate in self._cell.order], self._hidden)
                recurrent_bias = emit(
                    relax.op.multiply(recurrent_bias, relax.const(mask.astype(self._dtype)))
                )
            biases.append(recurrent_bias)
        if len(biases) == 2:
            biases = [emit(relax.op.add(*biases))]
        return emit(relax.op.add(product, biases[0])) if biases else product

    def _state(self, given: relax.Expr | None) -> relax.Expr:
        if given is not None:
            return self._take(given)
        shape = relax.ShapeExpr([self._batch, self._hidden])
        return self._bb.emit(relax.op.zeros(shape, self._dtype))

    # -- steps ----------------------------------------------------------------------------

    def _step(self, step: int, states: list[relax.Expr]) -> list[relax.Expr]:
        """Output, hidden state and, of an LSTM, cell state; the output is the hidden state where
        all sequences are of one length."""
        number = relax.const(np.array([step], np.int32))
        product = self._product(states[0], self._recurrent)
        given = [self._projection, number, product]
        if self._cell.kind == "gru":
            given.append(states[0])
        if self._cell.kind == "lstm":
            given.append(states[1])
        if self._cell.kind == "gru" and not self._cell.reset_after:
            update, reset = self._call("gates", self._gru_gates, given)
            candidate = self._product(reset, self._candidate)
            given = [self._projection, number, candidate, states[0], update]
        # C warns of what a kernel is given and does not use.
        masked = self._lengths is not None and self._cell.kind != "gru"
        extra = {
            "h": states[0] if masked else None,
            "lengths": self._lengths,
            "inner": self._inner,
            "peepholes": (
                None if self._direction.peepholes is None else self._take(self._direction.peepholes)
            ),
        }
        present = [name for name, value in extra.items() if value is not None]
        kernel = {"lstm": self._lstm, "gru": self._gru, "rnn": self._rnn}[self._cell.kind]

        def compute(*tensors):
            count = len(tensors) - len(present)
            named = dict(zip(present, tensors[count:], strict=True))
            return kernel(*tensors[:count], **named)

        made = self._call("step", compute, [*given, *(extra[name] for name in present)])
        return made if self._lengths is not None else [made[0], *made]

    def _product(self, state: relax.Expr, weight: relax.Expr) -> relax.Expr:
        return self._bb.emit(relax.op.matmul(state, weight, out_dtype=self._dtype))

    def _call(self, name: str, compute, arguments: list[relax.Expr]) -> list[relax.Expr]:
        """A kernel that is made once and called at every step."""
        title = f"{self._cell.kind}_{name}"
        kernel = shared_call(self._bb, self._kernels, compute, arguments, title)
        result = self._bb.emit(kernel)
        if not isinstance(result.ty, relax.TupleType):
            return [result]
        count = len(result.ty.fields)
        return [self._bb.emit(relax.TupleGetItem(result, at)) for at in range(count)]

    # -- kernels, in tensor expressions ---------------------------------------------------

    def _clipped(self, value: tvm.ir.Expr) -> tvm.ir.Expr:
        clip = self._cell.clip
        if clip is None:
            return value
        low, high = (tir.const(bound, self._dtype) for bound in (-clip, clip))
        # No number stays none.
        return tir.if_then_else(value > high, high, tir.if_then_else(value < low, low, value))

    def _compute(self, state, name: str, expression):
        return te.compute(state.shape, expression, name=name)

    def _results(self, state, hidden, others, number, lengths) -> list:
        """Hidden and other states, behind the output where lengths differ."""
        if lengths is None:
            return [hidden, *others]
        zero = tir.const(0, self._dtype)
        output = self._compute(
            state,
            "output",
            lambda b, j: tir.if_then_else(number[0] < lengths[b], hidden[b, j], zero),
        )
        return [output, hidden, *others]

    def _lstm(self, projection, number, product, c, h=None, lengths=None, peepholes=None) -> list:
        gate, candidate, state = self._direction.activations
        rows, one = "iof", tir.const(1, self._dtype)

        def argument(name, b, j, seen=None):
            at = self._cell.order.index(name) * self._hidden + j
            value = projection[number[0], b, at] + product[b, at]
            if peepholes is not None and name != "c":
                value = value + peepholes[rows.index(name), j] * seen[b, j]
            return self._clipped(value)

        def cell_state(b, j):
            let_in = gate(argument("i", b, j, c))
            kept = one - let_in if self._cell.coupled else gate(argument("f", b, j, c))
            return self._alive(
                kept * c[b, j] + let_in * candidate(argument("c", b, j)), c, number, lengths, b, j
            )

        cells = self._compute(c, "cells", cell_state)
        hidden = self._compute(
            c,
            "hidden",
            lambda b, j: self._alive(
                gate(argument("o", b, j, cells)) * state(cells(b, j)), h, number, lengths, b, j
            ),
        )
        return self._results(c, hidden, [cells], number, lengths)

    def _alive(self, value, before, number, lengths, b, j):
        """The state before, where the sequence has ended."""
        if lengths is None:
            return value
        return tir.if_then_else(number[0] < lengths[b], value, before[b, j])

    def _gru_gates(self, projection, number, product, h) -> list:
        """The update gate, and the hidden state as the reset gate leaves it."""
        gate = self._direction.activations[0]

        def value(name, b, j):
            at = self._cell.order.index(name) * self._hidden + j
            return gate(self._clipped(projection[number[0], b, at] + product[b, at]))

        update = self._compute(h, "update", lambda b, j: value("z", b, j))
        reset = self._compute(h, "reset", lambda b, j: value("r", b, j) * h[b, j])
        return [update, reset]

    def _gru(self, projection, number, product, h, update=None, lengths=None, inner=None) -> list:
        gate, candidate = self._direction.activations
        one = tir.const(1, self._dtype)

        def at(name, j):
            return self._cell.order.index(name) * self._hidden + j

        def opened(name, b, j):
            value = projection[number[0], b, at(name, j)] + product[b, at(name, j)]
            return gate(self._clipped(value))

        def proposed(b, j):
            own = projection[number[0], b, at("h", j)]
            if update is not None:
                return candidate(self._clipped(own + product[b, j]))
            past = product[b, at("h", j)]
            past = past + inner[j] if inner is not None else past
            return candidate(self._clipped(own + opened("r", b, j) * past))

        def mixed(b, j):
            z = opened("z", b, j) if update is None else update[b, j]
            value = (one - z) * proposed(b, j) + z * h[b, j]
            return self._alive(value, h, number, lengths, b, j)

        return self._results(h, self._compute(h, "hidden", mixed), [], number, lengths)

    def _rnn(self, projection, number, product, h=None, lengths=None) -> list:
        (activation,) = self._direction.activations

        def value(b, j):
            new = activation(self._clipped(projection[number[0], b, j] + product[b, j]))
            return self._alive(new, h, number, lengths, b, j)

        return self._results(product, self._compute(product, "hidden", value), [], number, lengths)
