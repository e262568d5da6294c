"""The rows of a sweep: sizes and arithmetic of each factor, and how it fares on a target."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import tvm

from tbn_tvm.compiler import resolve_target
from tbn_tvm.errors import TbnError, UsageError
from tbn_tvm.importing import Imported
from tbn_tvm.inspect import describe_layers, totals
from tbn_tvm.relay_passes import RetileWeights
from tbn_tvm.relay_passes.retile_weights import factor_of
from tbn_tvm.sweep.measure import measure_on_board, measure_time, plan_on_gpu


@dataclass(frozen=True)
class Row:
    """One compression factor.

    Attributes
    ----------
    p : int or None
        None for float weights.
    reason : str
        Why there are no figures, or not all of them; empty otherwise.
    tiled, binary, float : int
        Layers of each kind.
    sums : dict
        Of :func:`tbn_tvm.inspect.totals`; empty where ``p`` is impossible.
    measured : dict
        By name, what the target takes: ``microseconds`` and ``ratio`` (to float weights, measured
        in turns) on this machine; ``instructions``, ``flash``, ``ram`` on a board; ``weights``,
        ``activations`` and ``peak`` in bytes as planned on a GPU.
    """

    p: int | None
    reason: str = ""
    tiled: int = 0
    binary: int = 0
    float: int = 0
    sums: dict = field(default_factory=dict)
    measured: dict = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What tables and pictures call it."""
        return "float" if self.p is None else str(self.p)

    def to_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Sweep:
    """All rows of a model on a target."""

    model: str
    target: str
    min_size: int
    alpha: str
    rows: tuple[Row, ...]

    def to_dict(self) -> dict:
        """For JSON."""
        return {**asdict(self), "rows": [row.to_dict() for row in self.rows]}


def sweep(
    model: Imported,
    factors: Sequence[int],
    target: str = "llvm",
    *,
    min_size: int = 64_000,
    alpha: str = "tile",
    measure: bool = True,
    progress: Callable[[str], None] = lambda _text: None,
) -> Sweep:
    """Try compression factors on a model's structure; what it computes no longer matters.

    Parameters
    ----------
    model : Imported
        Float or tiled, of :func:`tbn_tvm.import_model`.
    factors : sequence of int
        Values of p, in the order of the rows. A row with float weights goes first.
    target : str
        As for :func:`tbn_tvm.compile`.
    min_size : int
        Layers with fewer weights are binary.
    alpha : {"tile", "layer"}
        One scalar a use of the tile, or one a layer.
    measure : bool
        Whether to compile and run too, where the target can be run here.
    progress : callable
        Called with a word on each step.

    Returns
    -------
    Sweep
        A factor that cannot be has a row with the reason.

    Raises
    ------
    UsageError
        For no target, or factors that are none.
    TbnError
        Where the model has no layers to tile.
    """
    resolved = resolve_target(target)
    for p in factors:
        if p < 1:
            raise UsageError(f"p = {p}: expected compression factors of at least 1")
    if not model.layers:
        raise TbnError("the model has no layers with constant weights: there is nothing to tile")
    rows, variants = [], []
    for p in (None, *dict.fromkeys(factors)):
        reason = "" if p is None else _impossible(model, p, min_size)
        variant = None if reason else _variant(model, p, min_size, alpha)
        rows.append(Row(p, reason) if variant is None else _described(p, variant))
        variants.append(variant)
    if measure:
        rows = _measured(rows, variants, resolved, progress)
    return Sweep(model.name, target, min_size, alpha, tuple(rows))


def _impossible(model: Imported, p: int, min_size: int) -> str:
    for layer in model.layers:
        weights = math.prod(layer.shape)
        if weights % factor_of(weights, p, min_size):
            return f"{p} does not divide the {weights:,} weights of {layer.name}"
    return ""


def _variant(model: Imported, p: int | None, min_size: int, alpha: str) -> Imported:
    mod = RetileWeights(p, min_size, alpha)(model.mod)
    mod = tvm.transform.Sequential([tvm.relax.transform.CanonicalizeBindings()])(mod)
    # Layers are found by content, which has changed; the order of their products has not.
    layers = describe_layers(mod, like=model.layers)
    return replace(model, mod=mod, layers=layers, program=None)


def _described(p: int | None, variant: Imported) -> Row:
    factors = [layer.p for layer in variant.layers]
    return Row(
        p,
        tiled=sum(factor is not None and factor > 1 for factor in factors),
        binary=factors.count(1),
        float=factors.count(None),
        sums=totals(variant.layers),
    )


def _measured(rows: list[Row], variants: list, target, progress) -> list[Row]:
    """The rows with what the target takes, or with the reason why it does not."""
    found: list[dict | TbnError] = []
    if isinstance(target, dict) and target["kind"] == "llvm":
        found = measure_time(variants, target, progress)
    else:
        act = plan_on_gpu if isinstance(target, dict) else measure_on_board
        for row, variant in zip(rows, variants, strict=True):
            if variant is None:
                found.append({})
                continue
            progress(f"p = {row.label}")
            try:
                found.append(act(variant, target))
            except TbnError as error:
                found.append(error)
    return [
        replace(row, reason=" ".join(str(figures).split()))
        if isinstance(figures, TbnError)
        else replace(row, measured=figures)
        for row, figures in zip(rows, found, strict=True)
    ]
