"""The search: which configurations of a kernel to measure next."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from tbn_tvm.schedules.kernel import Config, Kernel
from tbn_tvm.schedules.rules import Workload

Key = tuple[tuple[str, int], ...]

ENUMERATED = 4096
"""Spaces up to this size are listed; of larger ones, configurations are drawn."""

_POOL = 512
_RANDOM_SHARE = 0.25
_ELITE = 8
_ATTEMPTS = 50


def key(config: Config) -> Key:
    """A configuration as what sets and dicts take."""
    return tuple(sorted(config.items()))


class Space:
    """The configurations of a kernel for one regime.

    Parameters
    ----------
    kernel : Kernel
        The template.
    regime : Workload
        What is tuned.
    """

    def __init__(self, kernel: Kernel, regime: Workload) -> None:
        self.kernel, self.regime = kernel, regime
        self.values = kernel.space(regime)
        self.default = kernel.default(regime)
        self.all = None
        if math.prod(map(len, self.values.values())) <= ENUMERATED:
            self.all = list(kernel.configs(regime))

    def __len__(self) -> int:
        """Valid configurations; an upper bound for a large space."""
        if self.all is not None:
            return len(self.all)
        return math.prod(map(len, self.values.values()))

    def propose(
        self,
        count: int,
        seen: set[Key],
        best: Sequence[Config],
        scores: Callable[[list[dict]], Sequence[float] | None],
        rng: random.Random,
    ) -> list[dict]:
        """Configurations to measure next; none where all have been.

        Parameters
        ----------
        count : int
            At most so many.
        seen : set
            Keys of what was measured.
        best : sequence of dict
            The fastest so far, first the very fastest; large spaces are searched around them.
        scores : callable
            Predictions, higher is faster; None as long as there is too little to predict from.
        rng : random.Random
            Draws.

        Returns
        -------
        list of dict
            The default first where it was not measured yet; then those predicted to be fastest
            and, for a quarter, random ones.
        """
        chosen = [] if key(self.default) in seen else [self.default]
        taken = seen | {key(config) for config in chosen}
        pool = self._pool(taken, best, rng)
        rng.shuffle(pool)
        wanted = count - len(chosen)
        predicted = scores(pool) if len(pool) > wanted > 0 else None
        if predicted is not None:
            order = sorted(range(len(pool)), key=lambda i: -predicted[i])
            greedy = order[: math.ceil(wanted * (1 - _RANDOM_SHARE))]
            rest = [index for index in range(len(pool)) if index not in set(greedy)]
            pool = [pool[index] for index in (*greedy, *rest)]
        return chosen + pool[: max(wanted, 0)]

    def _pool(self, taken: set[Key], best: Sequence[Config], rng: random.Random) -> list[dict]:
        if self.all is not None:
            return [config for config in self.all if key(config) not in taken]
        found: dict[Key, dict] = {}
        for _ in range(_POOL):
            parents = best[:_ELITE]
            drawn = (
                self._mutated(rng.choice(parents), rng) if parents and rng.random() < 0.5 else None
            )
            drawn = drawn or self._drawn(rng)
            if drawn is not None and key(drawn) not in taken:
                found[key(drawn)] = drawn
        return list(found.values())

    def _drawn(self, rng: random.Random) -> dict | None:
        for _ in range(_ATTEMPTS):
            config = {name: rng.choice(values) for name, values in self.values.items()}
            if self.kernel.valid(self.regime, config):
                return config
        return None

    def _mutated(self, parent: Config, rng: random.Random) -> dict | None:
        for _ in range(_ATTEMPTS):
            config = dict(parent)
            for name in rng.sample(sorted(self.values), rng.choice((1, min(2, len(self.values))))):
                config[name] = rng.choice(self.values[name])
            if self.kernel.valid(self.regime, config):
                return config
        return None
