"""From an ordinary model to a tiled one, and from a trained tiled model to bits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from tbn_tvm.errors import UsageError
from tbn_tvm.nn.base import FrozenLayer, TiledLayer
from tbn_tvm.nn.calibrate import fit_to_outputs
from tbn_tvm.nn.functional import AlphaMode
from tbn_tvm.nn.layers import TiledConv1d, TiledConv2d, TiledLinear, resolve_padding
from tbn_tvm.nn.match import matching_order, require_scipy
from tbn_tvm.nn.norm import MeanOnlyBatchNorm1d
from tbn_tvm.nn.permute import permute_outputs
from tbn_tvm.nn.start import START_MODES, StartMode
from tbn_tvm.tiling import largest_divisor

# Exact types only: subclasses (the projection inside nn.MultiheadAttention, say) are read by
# their parents in ways of their own.
_TILED = {nn.Linear: TiledLinear, nn.Conv1d: TiledConv1d, nn.Conv2d: TiledConv2d}

Skip = Iterable[str] | Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class LayerReport:
    """What :func:`tile_model` did with one layer.

    Attributes
    ----------
    name, kind : str
        Qualified name and the class it had.
    shape : tuple of int
        Shape of its weight.
    p : int or None
        Compression factor given; None where the layer stays float.
    reason : str
        Why, where it is not simply the ``p`` asked for.
    error : float or None
        ``||W' - W||^2 / ||W||^2`` of the tiled weight ``W'`` that training starts from and the
        float weight ``W``; None where the layer stays float.
    permuted : bool
        Whether its outputs were reordered.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    p: int | None
    reason: str = ""
    error: float | None = None
    permuted: bool = False


@dataclass(frozen=True)
class ConversionReport:
    """What :func:`tile_model` did, a row a layer that holds weights."""

    layers: tuple[LayerReport, ...]

    @property
    def tiled(self) -> tuple[LayerReport, ...]:
        """The layers that were converted."""
        return tuple(layer for layer in self.layers if layer.p is not None)

    def to_dict(self) -> dict:
        """For JSON."""
        return {"layers": [asdict(layer) for layer in self.layers]}

    def __str__(self) -> str:
        rows = [
            f"{layer.name or '(root)'}: {layer.kind} {'x'.join(map(str, layer.shape))} -> "
            + (f"p = {layer.p}" if layer.p is not None else "float")
            + (", outputs permuted" if layer.permuted else "")
            + (f" ({layer.reason})" if layer.reason else "")
            for layer in self.layers
        ]
        return "\n".join(rows)


def tile_model(
    model: nn.Module,
    p: int,
    min_size: int = 64_000,
    skip: Skip = (),
    *,
    start: StartMode = "nearest",
    calibration: Tensor | tuple[Tensor, ...] | None = None,
    permute: bool = False,
    **options,
) -> ConversionReport:
    """Replace the linear and convolution layers of a model by tiled ones, in place.

    A layer used in several places is replaced once and stays shared. For a trained model, training
    goes on from the tiled model nearest to it:

    1. With ``permute``, the outputs of layers are reordered, and whatever reads them with them, so
       that rows that resemble each other share a row of the tile
       (:mod:`tbn_tvm.nn.match`, :mod:`tbn_tvm.nn.permute`). The float model computes what it did.
    2. Signs ``t`` and scalars ``a_i >= 0`` minimise ``sum_i ||W_i - a_i t||^2`` over the ``p``
       blocks ``W_i`` of each weight (:mod:`tbn_tvm.nn.start`). Magnitudes (A of the paper) become
       ``a_i``; scores (W) get the signs ``t`` and the size ``|sum_i a_i W_i|``, scaled so that
       bits flip at the learning rates that suit a random start
       (:meth:`~tbn_tvm.nn.layers.TiledLayer.load_start`).
    3. With ``calibration``, scalars, biases and the statistics of batch normalisation are fitted
       layer by layer to the float model's outputs (:mod:`tbn_tvm.nn.calibrate`).

    Parameters
    ----------
    model : nn.Module
        The model. It must hold the layers as children: a bare ``nn.Linear`` cannot be replaced
        in place.
    p : int
        Compression factor. Where it does not divide a layer's number of weights, the largest
        divisor below it is used, and the report says so.
    min_size : int
        Lambda of the paper: layers with fewer weights are binary (``p = 1``).
    skip : iterable of str, or callable
        Names or ``fnmatch`` patterns of layers that stay float, or a predicate over
        ``(name, module)``.
    start : {"nearest", "copy", "random"}
        ``nearest`` is the above; ``copy`` makes the float weight both scores and magnitudes, as it
        is for a model that has not been trained; ``random`` is the start of a tiled layer built
        directly. Biases are always taken over.
    calibration : Tensor or tuple of Tensor, optional
        Input samples, a batch for each input of the model; a few hundred do.
    permute : bool
        Reorder outputs where the graph allows it; needs ``calibration``, with which the graph is
        followed. Only layers whose tile is whole rows (``p`` divides the outputs) gain.
    **options
        ``alpha``, ``alpha_from``, ``gradient`` of :class:`~tbn_tvm.nn.layers.TiledLayer`.

    Returns
    -------
    ConversionReport
        A row for each layer that holds weights.

    Raises
    ------
    UsageError
        For arguments that contradict one another, before anything has changed.
    ToolError
        Where permuting lacks SciPy.
    """
    if p < 1:
        raise UsageError(f"p={p}: expected a compression factor of at least 1")
    if type(model) in _TILED:
        raise UsageError(
            f"the model is a bare {type(model).__name__}, which cannot be replaced in place: "
            "wrap it in nn.Sequential, or build the tiled layer directly"
        )
    if start not in START_MODES:
        raise UsageError(f"start={start!r}: expected one of {', '.join(START_MODES)}")
    if start != "nearest" and (permute or calibration is not None):
        raise UsageError(f"start={start!r}: permute and calibration belong to start='nearest'")
    if permute and calibration is None:
        raise UsageError("permute=True needs calibration: samples that the graph is followed with")
    _check_options(options)
    samples = (calibration,) if isinstance(calibration, Tensor) else calibration
    plan = _plan(model, p, min_size, _skip_predicate(skip))
    chosen = {module: row.p for module, row in plan.items() if row.p is not None}
    if permute:
        plan = _permuted(model, samples, plan, options.get("alpha", "tile"))
    reference = None if samples is None else copy.deepcopy(model)
    made = {}
    for module, factor in chosen.items():
        made[module] = _TILED[type(module)].like(module, start=start, p=factor, **options)
        made[module].train(module.training)
        plan[module] = replace(plan[module], error=_relative_error(made[module], module))
    _rewire(model, made)
    if samples is not None:
        fit_to_outputs(model, reference, samples)
    return ConversionReport(tuple(plan.values()))


def freeze(model: nn.Module) -> nn.Module:
    """Replace trainable tiled layers by frozen ones, in place, and put the model in eval mode.

    Afterwards the state dict holds for each of them the tile's bits, the alphas and the bias. A
    :class:`tbn_tvm.nn.MeanOnlyBatchNorm1d` becomes a bias, too.

    Returns
    -------
    nn.Module
        The same model; a frozen layer of its own where the model itself is a tiled layer.
    """
    model.eval()
    if isinstance(model, TiledLayer):
        return model.frozen().eval()
    _rewire(
        model,
        {
            m: m.frozen().eval()
            for m in model.modules()
            if isinstance(m, (TiledLayer, MeanOnlyBatchNorm1d))
        },
    )
    return model


def _check_options(options: dict) -> None:
    """Refuse what a layer would refuse, before anything has changed."""
    try:
        TiledLinear(1, 1, p=1, **options)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _skip_predicate(skip: Skip) -> Callable[[str, nn.Module], bool]:
    if callable(skip):
        return skip
    patterns = [skip] if isinstance(skip, str) else list(skip)
    return lambda name, module: any(fnmatchcase(name, pattern) for pattern in patterns)


def _plan(
    model: nn.Module, p: int, min_size: int, skipped: Callable[[str, nn.Module], bool]
) -> dict[nn.Module, LayerReport]:
    """What is to become of each layer that holds weights. Shared ones come once, under their
    first name."""
    plan = {}
    for name, module in model.named_modules():
        if isinstance(module, (TiledLayer, FrozenLayer)):
            continue
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() < 2:
            continue
        chosen, reason = None, _obstacle(module)
        if not reason and skipped(name, module):
            reason = "skipped on request"
        if not reason:
            chosen, reason = _choose_p(weight.numel(), p, min_size)
        kind, shape = type(module).__name__, tuple(weight.shape)
        plan[module] = LayerReport(name, kind, shape, chosen, reason)
    return _with_untied(model, plan)


def _with_untied(
    model: nn.Module, plan: dict[nn.Module, LayerReport]
) -> dict[nn.Module, LayerReport]:
    """Say of layers to be tiled which others held the same parameter as weight.

    A tiled layer has scores and magnitudes of its own, so what was one parameter, the table of an
    embedding and the head behind it say, is trained apart from there on.
    """
    holders: dict[nn.Parameter, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if key != "bias":
                label = name if key == "weight" else f"{name}.{key}".removeprefix(".")
                holders.setdefault(parameter, []).append((label, module))
    told = dict(plan)
    for module, row in plan.items():
        others = [label for label, other in holders.get(module.weight, ()) if other is not module]
        if row.p is not None and others:
            note = f"its weight was shared with {', '.join(others)}: from here on it is its own"
            told[module] = replace(row, reason="; ".join(filter(None, (row.reason, note))))
    return told


def _obstacle(module: nn.Module) -> str:
    """Why a layer has no tiled form, or nothing."""
    if is_parametrized(module, "weight"):
        return (
            "its weight is parametrized: make it a parameter first, with "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"
        )
    if type(module) not in _TILED:
        return "no tiled form of this layer"
    if not isinstance(module.weight, nn.Parameter):
        # It is what it was at the last call, which need not be what a loaded state makes of it.
        return (
            "its weight is made by a hook before each call: make it a parameter first, with "
            "torch.nn.utils.remove_weight_norm, remove_spectral_norm or prune.remove"
        )
    if isinstance(module, nn.Linear):
        return ""
    try:
        resolve_padding(module.padding, module.kernel_size, module.stride, module.dilation)
    except ValueError as error:
        return str(error)
    return ""


def _choose_p(weights: int, p: int, min_size: int) -> tuple[int, str]:
    if weights < min_size:
        return 1, f"{weights} weights, fewer than min_size = {min_size}: binary" if p > 1 else ""
    divisor = largest_divisor(weights, p)
    return divisor, "" if divisor == p else f"{p} does not divide {weights} weights"


def _permuted(
    model: nn.Module,
    samples: tuple[Tensor, ...],
    plan: dict[nn.Module, LayerReport],
    alpha: AlphaMode,
) -> dict[nn.Module, LayerReport]:
    """Reorder outputs, and say in the plan of which layers."""
    require_scipy()
    rows = {
        module: row for module, row in plan.items() if (row.p or 1) > 1 and not row.shape[0] % row.p
    }
    outcome = permute_outputs(
        model, samples, rows, lambda module: matching_order(module.weight, plan[module].p, alpha)
    )
    told = dict(plan)
    for module, obstacle in outcome.items():
        row = plan[module]
        note = f"outputs keep their order: {obstacle}" if obstacle else ""
        told[module] = replace(
            row, reason="; ".join(filter(None, (row.reason, note))), permuted=not obstacle
        )
    return told


@torch.no_grad()
def _relative_error(tiled: TiledLayer, module: nn.Module) -> float:
    weight = module.weight.float()
    energy = float(weight.square().sum())
    return float((tiled.weight.float() - weight).square().sum()) / energy if energy else 0.0


def _rewire(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    for parent in list(model.modules()):
        if isinstance(parent, nn.TransformerEncoderLayer):
            # Its fused inference path reads the dense weights of its children past their forward;
            # this attribute is what tells it that no fused activation applies.
            parent.activation_relu_or_gelu = 0
        if isinstance(parent, nn.TransformerEncoder):
            # Only that path understands the nested tensors a padding mask would make.
            parent.use_nested_tensor = False
        for name, child in list(parent._modules.items()):
            if child in replacements:
                setattr(parent, name, replacements[child])
