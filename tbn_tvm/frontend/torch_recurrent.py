"""``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` of exported PyTorch programs."""

from __future__ import annotations

import torch
from torch import fx
from tvm import relax
from tvm import tirx as tir

from tbn_tvm.errors import FormatError
from tbn_tvm.frontend.recurrent import MAX_STEPS, Activation, Cell, Direction, recurrent

_LAYERS: dict[str, tuple[Cell, tuple[Activation, ...]]] = {
    "gru": (Cell("gru", "rzh", reset_after=True), (tir.sigmoid, tir.tanh)),
    "lstm": (Cell("lstm", "ifco"), (tir.sigmoid, tir.tanh, tir.tanh)),
    "rnn_relu": (Cell("rnn", "h"), (lambda x: tir.max(x, tir.const(0, str(x.ty))),)),
    "rnn_tanh": (Cell("rnn", "h"), (tir.tanh,)),
}
"""By the operator's name: equations and activations."""

OPERATORS = [getattr(torch.ops.aten, name).input for name in _LAYERS]
"""What this module converts. In core operators each is a long list of its steps' operators."""


def _convert(node: fx.Node, importer) -> relax.Var:
    """All layers, one after the other.

    Raises
    ------
    FormatError
        Where the layers were exported for training with dropout, or project their states.
    """
    name = node.target.__name__.split(".")[0]
    cell, activations = _LAYERS[name]
    x, states, weights, biased, count, dropout, training, both, batch_first = (
        importer.retrieve_args(node)
    )
    if training and dropout and count > 1:
        raise FormatError(f"{name} drops out at random: export the model after model.eval()")
    each = 4 if biased else 2
    backward = (False, True) if both else (False,)
    if len(weights) != each * count * len(backward):
        raise FormatError(f"{name} with proj_size is not supported: leave it at 0")
    _check_steps(node)
    bb = importer.block_builder
    if batch_first:
        x = bb.emit(relax.op.permute_dims(x, [1, 0, 2]))
    initial = list(states) if name == "lstm" else [states]
    last = []
    for at in range(count):
        directions = []
        for flag in backward:
            number = len(backward) * at + flag
            w, r, *biases = weights[each * number : each * (number + 1)]
            own = [_one(bb, state, number) for state in initial]
            directions.append(
                Direction(w, r, activations, *(biases or (None, None)), *own, backward=flag)
            )
        every, *ends = recurrent(bb, cell, directions, x)
        last.append(ends)
        steps, sides, batch, hidden = every.ty.shape.values
        every = bb.emit(relax.op.permute_dims(every, [0, 2, 1, 3]))
        x = bb.emit(relax.op.reshape(every, [steps, batch, sides * hidden]))
    if batch_first:
        x = bb.emit(relax.op.permute_dims(x, [1, 0, 2]))
    ends = [list(parts) for parts in zip(*last, strict=True) if parts[0] is not None]
    joined = [p[0] if len(p) == 1 else bb.emit(relax.op.concat(p, 0)) for p in ends]
    return bb.emit(relax.Tuple([x, *joined]))


def _one(bb: relax.BlockBuilder, states: relax.Expr, at: int) -> relax.Expr:
    """The initial state of one direction of one layer."""
    part = bb.emit(relax.op.strided_slice(states, [0], [at], [at + 1]))
    return bb.emit(relax.op.squeeze(part, [0]))


def _check_steps(node: fx.Node) -> None:
    """Bound what all recurrent layers of a program are unrolled to."""
    total = 0
    for other in node.graph.nodes:
        if other.target not in OPERATORS:
            continue
        _x, _states, _weights, _biased, count, *_training, both, batch_first = other.args
        steps = other.args[0].meta["val"].shape[1 if batch_first else 0]
        if not isinstance(steps, int):
            continue  # which is refused by another name
        total += steps * count * (2 if both else 1)
    if total > MAX_STEPS:
        raise FormatError(
            f"the program's recurrent layers have {total:,} steps in all: expected at most "
            f"{MAX_STEPS:,}, each of which is compiled; split the sequence and pass the states on"
        )


RECURRENT = {f"{name}.input": _convert for name in _LAYERS}
"""Converters."""
