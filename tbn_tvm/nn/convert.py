"""From an ordinary model to a tiled one, and from a trained tiled model to bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from tbn_tvm.errors import UsageError
from tbn_tvm.nn.layers import FrozenLayer, TiledConv1d, TiledConv2d, TiledLayer, TiledLinear
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
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    p: int | None
    reason: str = ""


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
            + (f" ({layer.reason})" if layer.reason else "")
            for layer in self.layers
        ]
        return "\n".join(rows)


def tile_model(
    model: nn.Module,
    p: int,
    min_size: int = 64_000,
    skip: Skip = (),
    **options,
) -> ConversionReport:
    """Replace the linear and convolution layers of a model by tiled ones, in place.

    Each new layer starts from the float weight it replaces. A layer used in several places is
    replaced once and stays shared.

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
    **options
        ``alpha``, ``alpha_from``, ``gradient`` of :class:`~tbn_tvm.nn.layers.TiledLayer`.

    Returns
    -------
    ConversionReport
        A row for each layer that holds weights.
    """
    if p < 1:
        raise UsageError(f"p={p}: expected a compression factor of at least 1")
    if type(model) in _TILED:
        raise UsageError(
            f"the model is a bare {type(model).__name__}, which cannot be replaced in place: "
            "wrap it in nn.Sequential, or build the tiled layer directly"
        )
    matches = _skip_predicate(skip)
    rows: list[LayerReport] = []
    made: dict[nn.Module, nn.Module] = {}
    # Shared layers come once under their first name; all their parents are rewired below.
    for name, module in list(model.named_modules()):
        if isinstance(module, (TiledLayer, FrozenLayer)):
            continue
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() < 2:
            continue
        kind, shape = type(module).__name__, tuple(weight.shape)
        if type(module) not in _TILED:
            rows.append(LayerReport(name, kind, shape, None, "no tiled form of this layer"))
            continue
        if matches(name, module):
            rows.append(LayerReport(name, kind, shape, None, "skipped on request"))
            continue
        chosen, reason = _choose_p(weight.numel(), p, min_size)
        try:
            made[module] = _TILED[type(module)].like(module, p=chosen, **options)
        except ValueError as error:
            if "padding" not in str(error):
                raise UsageError(str(error)) from None
            rows.append(LayerReport(name, kind, shape, None, str(error)))
            continue
        made[module].train(module.training)
        rows.append(LayerReport(name, kind, shape, chosen, reason))
    _rewire(model, made)
    return ConversionReport(tuple(rows))


def freeze(model: nn.Module) -> nn.Module:
    """Replace trainable tiled layers by frozen ones, in place, and put the model in eval mode.

    Afterwards the state dict holds for each of them the tile's bits, the alphas and the bias.

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
        {m: m.frozen().eval() for m in model.modules() if isinstance(m, TiledLayer)},
    )
    return model


def _skip_predicate(skip: Skip) -> Callable[[str, nn.Module], bool]:
    if callable(skip):
        return skip
    patterns = [skip] if isinstance(skip, str) else list(skip)
    return lambda name, module: any(fnmatchcase(name, pattern) for pattern in patterns)


def _choose_p(weights: int, p: int, min_size: int) -> tuple[int, str]:
    if weights < min_size:
        return 1, f"{weights} weights, fewer than min_size = {min_size}: binary" if p > 1 else ""
    divisor = largest_divisor(weights, p)
    return divisor, "" if divisor == p else f"{p} does not divide {weights} weights"


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
