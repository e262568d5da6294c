"""Where each buffer lies in the arena: offsets from sizes and lifetimes, at compile time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tbn_tvm.micro.program import Buffer

_EXACT_NODES = 20_000
"""Partial plans that the search for the smallest arena may look at."""

_MOVES = 300
"""Changes of order that are tried where that search does not come to an end."""

_WORK = 4_000_000
"""Pairs of buffers that all of the tries together may compare: seconds, at most."""


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
        The largest sum of buffers alive at once, one that is written over another counted with it
        as one: no plan is smaller.
    in_place : dict of str to str
        Buffers that are written over another, which ends where they begin; by the writer.
    """

    offsets: dict[str, int]
    nbytes: int
    lower_bound: int
    in_place: dict[str, str] = field(default_factory=dict)


def plan_arena(buffers: Sequence[Buffer], in_place: Sequence[tuple[str, str]] = ()) -> Plan:
    """Place buffers so that those alive at the same step do not overlap.

    Each goes to the lowest offset that is free throughout its lifetime, in several orders of which
    the best plan is kept: the largest first (Pisarchyk and Lee, arXiv:2001.03288), and those of
    every other step first, which meets the lower bound wherever each step reads only what the step
    before it wrote. Where that bound is missed, orders are searched: all of them in few buffers,
    some in many. The same buffers always get the same plan.

    Parameters
    ----------
    buffers : sequence of Buffer
        All that the arena holds.
    in_place : sequence of (str, str)
        Which buffer may be written over which other that ends at that step, of the same size. It
        is where the arena is smaller for it.
    """
    apart = _planned(buffers, {})
    if not in_place or not buffers:
        return apart
    choices: dict[str, list[str]] = {}
    for writer, over in sorted(in_place):
        choices.setdefault(writer, []).append(over)
    chosen: dict[str, str] = {}
    for writer, options in choices.items():
        if options[0] not in chosen.values():
            chosen[writer] = options[0]
    # As many as possible at first, then each the other ways, once or twice around.
    best = min(_sketched(buffers, chosen), _sketched(buffers, {}), key=_smallness)
    tries = 1 + _WORK // (4 * len(buffers) ** 2)
    for writer, options in 2 * list(choices.items()):
        for over in (None, *options):
            tried = {w: o for w, o in best.in_place.items() if w != writer and o != over}
            tried |= {} if over is None else {writer: over}
            if tries > 0 and tried != best.in_place:
                best = min(best, _sketched(buffers, tried), key=_smallness)
                tries -= 1
    return min(apart, _planned(buffers, best.in_place), key=_smallness)


def _smallness(plan: Plan) -> tuple:
    """Of two arenas of one size that with fewer shared places is better: its kernels may assume
    that their operands are apart."""
    return plan.nbytes, len(plan.in_place), sorted(plan.in_place.items())


def _planned(buffers: Sequence[Buffer], in_place: dict[str, str]) -> Plan:
    """The plan with each writer in the place of what it is written over."""
    return _with_shared(buffers, in_place, _Search.best)


def _sketched(buffers: Sequence[Buffer], in_place: dict[str, str]) -> Plan:
    """The same without the search, to compare choices of places."""
    return _with_shared(buffers, in_place, _Search.sketch)


def _with_shared(
    buffers: Sequence[Buffer], in_place: dict[str, str], search: Callable[[_Search], Plan]
) -> Plan:
    by_name = {buffer.name: buffer for buffer in buffers}
    root = {name: name for name in by_name}
    for writer, over in sorted(in_place.items(), key=lambda pair: by_name[pair[0]].first):
        root[writer] = root[over]
    merged: dict[str, Buffer] = {}
    for buffer in sorted(buffers, key=lambda b: (b.first, b.name)):
        whole = merged.setdefault(root[buffer.name], buffer)
        merged[root[buffer.name]] = replace(
            whole,
            nbytes=max(whole.nbytes, buffer.nbytes),
            alignment=max(whole.alignment, buffer.alignment),
            first=min(whole.first, buffer.first),
            last=max(whole.last, buffer.last),
        )
    plan = search(_Search([replace(buffer, name=name) for name, buffer in merged.items()]))
    return replace(
        plan, offsets={name: plan.offsets[root[name]] for name in root}, in_place=dict(in_place)
    )


class _Search:
    """Plans for a set of buffers, none of which shares its place."""

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        # The largest first, whatever order they came in.
        self.buffers = sorted(buffers, key=lambda b: (-b.nbytes, b.first, b.last, b.name))
        steps = sorted({b.first for b in buffers})
        alive = (sum(b.nbytes for b in buffers if b.first <= step <= b.last) for step in steps)
        self.lower_bound = max(alive, default=0)
        self._goal = _aligned(self.lower_bound, 4)

    def best(self) -> Plan:
        """The smallest plan found."""
        offsets = self._greedy()
        for search in (self._ordered, self._shuffled):
            if self._size(offsets) <= self._goal:
                break
            offsets = min(offsets, search(self._size(offsets)), key=self._size)
        return self._plan(offsets)

    def sketch(self) -> Plan:
        """A plan made in one go."""
        return self._plan(self._greedy())

    def _plan(self, offsets: dict[str, int]) -> Plan:
        named = {buffer.name: offsets[buffer.name] for buffer in self.buffers}
        return Plan(named, self._size(offsets), self.lower_bound)

    def _greedy(self) -> dict[str, int]:
        by_parity = sorted(self.buffers, key=lambda b: b.first % 2)
        by_length = sorted(self.buffers, key=lambda b: (b.first - b.last) * b.nbytes)
        by_time = sorted(self.buffers, key=lambda b: (b.first, -b.last))
        orders = [self.buffers, by_parity, by_length, by_time]
        return min((_first_fit(order) for order in orders), key=self._size)

    def _size(self, offsets: dict[str, int] | None) -> int:
        if offsets is None:
            return _NEVER
        return _aligned(max((offsets[b.name] + b.nbytes for b in self.buffers), default=0), 4)

    def _ordered(self, best: int) -> dict[str, int] | None:
        """Branch and bound over the order in which buffers lie, from the bottom to the top.

        Each lies on the highest of those below it that live when it does; one of the orders gives
        the smallest arena. Orders are left as soon as what still has to be placed at some step
        cannot end below the best arena known.
        """
        steps = sorted({b.first for b in self.buffers})
        lives = [[i for i, s in enumerate(steps) if b.first <= s <= b.last] for b in self.buffers]
        height, left = [0] * len(steps), [0] * len(steps)
        for buffer, life in zip(self.buffers, lives, strict=True):
            for step in life:
                left[step] += buffer.nbytes
        offsets: dict[str, int] = {}
        found: dict[str, int] | None = None
        nodes = _EXACT_NODES

        def descend(lowest: int) -> None:
            nonlocal best, found, nodes
            if len(offsets) == len(self.buffers):
                size = self._size(offsets)
                if size < best:
                    best, found = size, dict(offsets)
                return
            for buffer, life in zip(self.buffers, lives, strict=True):
                if buffer.name in offsets:
                    continue
                offset = _aligned(max(height[step] for step in life), buffer.alignment)
                # Any order with a lower buffer placed later is another order's plan.
                if offset < lowest:
                    continue
                nodes -= 1
                if nodes < 0 or best <= self._goal:
                    return
                heights = [height[step] for step in life]
                for step in life:
                    height[step] = offset + buffer.nbytes
                    left[step] -= buffer.nbytes
                if all(height[step] + left[step] < best for step in life):
                    offsets[buffer.name] = offset
                    descend(offset)
                    del offsets[buffer.name]
                for step, before in zip(life, heights, strict=True):
                    height[step] = before
                    left[step] += buffer.nbytes

        if len(self.buffers) <= _DEEPEST:
            descend(0)
        return found

    def _shuffled(self, best: int) -> dict[str, int] | None:
        """Exchange two buffers in the order of placement, again and again."""
        generator = random.Random(0)
        order, found = list(self.buffers), None
        size = self._size(_first_fit(order))
        for _ in range(min(_MOVES, _WORK // len(order) ** 2)):
            if best <= self._goal:
                break
            a, b = generator.randrange(len(order)), generator.randrange(len(order))
            order[a], order[b] = order[b], order[a]
            offsets = _first_fit(order)
            changed = self._size(offsets)
            if changed > size:
                order[a], order[b] = order[b], order[a]
                continue
            size = changed
            if size < best:
                best, found = size, offsets
        return found


_NEVER = 1 << 62
_DEEPEST = 200
"""Buffers up to which the recursive search may go down."""


def _first_fit(buffers: Sequence[Buffer]) -> dict[str, int]:
    """Each buffer at the lowest offset that is free throughout its lifetime."""
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
    return offsets


def _aligned(offset: int, alignment: int) -> int:
    return (offset + alignment - 1) // alignment * alignment
