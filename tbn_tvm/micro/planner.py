"""Where each buffer lies in the arena: offsets from sizes and lifetimes, at compile time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tbn_tvm.micro.program import Buffer


@dataclass(frozen=True)
class Plan:
    """An arena.

    Attributes
    ----------
    offsets : dict of str to int
        Byte offset of each buffer.
    nbytes : int
        Size of the arena.
    lower_bound : int
        The largest sum of buffers alive at once: no plan is smaller.
    """

    offsets: dict[str, int]
    nbytes: int
    lower_bound: int


def plan_arena(buffers: Sequence[Buffer]) -> Plan:
    """Place buffers so that those alive at the same step do not overlap.

    Each goes to the lowest offset that is free throughout its lifetime, in two orders of which
    the better plan is kept: the largest first (Pisarchyk and Lee, arXiv:2001.03288), and those
    of every other step first, which meets the lower bound wherever each step reads only what the
    step before it wrote.
    """
    by_size = sorted(buffers, key=lambda b: (-b.nbytes, b.first, b.name))
    by_parity = sorted(by_size, key=lambda b: b.first % 2)
    plans = [_place(by_size), _place(by_parity)]
    return min(plans, key=lambda plan: plan.nbytes)


def _place(buffers: Sequence[Buffer]) -> Plan:
    offsets: dict[str, int] = {}
    placed: list[Buffer] = []
    for buffer in buffers:
        offset = 0
        neighbours = [b for b in placed if b.first <= buffer.last and buffer.first <= b.last]
        for other in sorted(neighbours, key=lambda b: offsets[b.name]):
            if offset + buffer.nbytes <= offsets[other.name]:
                break
            offset = max(offset, _aligned(offsets[other.name] + other.nbytes, buffer.alignment))
        offsets[buffer.name] = offset
        placed.append(buffer)
    nbytes = max((offsets[b.name] + b.nbytes for b in buffers), default=0)
    steps = {b.first for b in buffers}
    alive = (sum(b.nbytes for b in buffers if b.first <= step <= b.last) for step in steps)
    return Plan(offsets, _aligned(nbytes, 4), max(alive, default=0))


def _aligned(offset: int, alignment: int) -> int:
    return (offset + alignment - 1) // alignment * alignment
