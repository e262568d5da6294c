"""Checkpoints of the reference implementation (the authors' code, 2024-01).

Its tiled layers keep the float layer's names and hold ``scores`` and ``weight`` of the full shape:
W and A of the paper. The tile is the sign of ``scores`` summed over the blocks, +1 above zero and
-1 else; alphas are means of ``|weight|``. Which ``p`` it was is not in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from tbn_tvm.errors import TbnError
from tbn_tvm.nn.base import FrozenLayer, TiledLayer

_WRAPPINGS = ("state_dict", "model_state_dict", "model", "net")
"""Where training scripts put the state dict beside epochs and optimisers."""

_PREFIXES = ("module.", "_orig_mod.")
"""Of ``nn.DataParallel`` and of ``torch.compile``."""

_MOST_NAMED = 8

Kind = Literal["tiled", "binary", "float"]


def load_reference_state_dict(
    model: nn.Module, state_dict: Mapping, *, match: Literal["name", "order"] = "name"
) -> dict[str, Kind]:
    """Load a checkpoint of the reference implementation into a model of tiled layers.

    Parameters
    ----------
    model : nn.Module
        With trainable tiled layers of the ``p``, ``min_size`` and ``alpha`` that the checkpoint was
        trained with. Unchanged where an error is raised.
    state_dict : mapping
        Tensors by name, perhaps inside ``{"state_dict": ...}`` and behind ``module.``. ``scores``
        become scores and ``weight`` magnitudes; where a tiled layer takes its alphas from its
        scores, ``weight`` is not used. A binary layer (``p = 1``) without ``scores`` has its
        ``weight`` for both; a float layer takes ``weight`` as it is. Biases and normalisation load
        as ever.
    match : {"name", "order"}
        Whether layers correspond by name, or by their order where architectures are written down
        in the same order under other names.

    Returns
    -------
    dict
        What became of each layer with weights, by its name in ``model``.

    Raises
    ------
    TbnError
        Where the two do not fit, with everything that is missing, left over or of another shape.
    """
    given = unwrapped(state_dict)
    if match == "order":
        given = _renamed(model, given)
    mapped, kinds = _mapped(model, given)
    _check(model.state_dict(), mapped, given)
    model.load_state_dict(mapped, strict=False)
    return kinds


def unwrapped(state_dict: Mapping) -> dict[str, Tensor]:
    """The state dict itself, out of what training scripts and wrapping modules put around it.

    Raises
    ------
    TbnError
        Where there is none.
    """
    found = state_dict
    for _ in range(3):
        inner = next((k for k in _WRAPPINGS if isinstance(found.get(k), Mapping)), None)
        if inner is None:
            break
        found = found[inner]
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise TbnError(
            f"the checkpoint holds no tensors under {', '.join(map(str, list(found)[:8])) or 'it'}:"
            f" expected a state dict, or one under {' or '.join(map(repr, _WRAPPINGS))}"
        )
    strangers = [name for name, value in found.items() if not isinstance(value, Tensor)]
    if strangers:
        raise TbnError(f"the state dict holds what is no tensor: {_listed(map(str, strangers))}")
    while True:
        prefix = next((p for p in _PREFIXES if all(n.startswith(p) for n in tensors)), None)
        if prefix is None:
            return tensors
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}


def _renamed(model: nn.Module, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint under the model's names, layers paired in order."""
    theirs: dict[str, dict[str, Tensor]] = {}
    for name, value in given.items():
        layer, _, leaf = name.rpartition(".")
        theirs.setdefault(layer, {})[leaf] = value
    ours = [name for name, module in model.named_modules() if _own_tensors(module)]
    if len(ours) != len(theirs):
        raise TbnError(
            f"the checkpoint has {len(theirs)} layers with tensors and the model {len(ours)}: they "
            "cannot be paired in order"
        )
    return {
        f"{name}.{leaf}" if name else leaf: value
        for name, tensors in zip(ours, theirs.values(), strict=True)
        for leaf, value in tensors.items()
    }


def _own_tensors(module: nn.Module) -> bool:
    values = (*module._parameters.values(), *module._buffers.values())
    return any(value is not None for value in values)


def _mapped(
    model: nn.Module, given: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Kind]]:
    """The checkpoint in our layers' terms."""
    mapped, kinds = dict(given), {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, FrozenLayer):
            raise TbnError(f"layer {name!r} is frozen: load checkpoints before freezing")
        if not isinstance(module, TiledLayer):
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.dim() > 1:
                kinds[name] = "float"
            continue
        kinds[name] = "tiled" if module.p > 1 else "binary"
        weight = mapped.pop(f"{prefix}weight", None)
        if f"{prefix}scores" not in mapped and module.p == 1 and weight is not None:
            mapped[f"{prefix}scores"] = weight
        if module.magnitudes is not None and weight is not None:
            mapped[f"{prefix}magnitudes"] = weight
    return mapped, kinds


def _check(
    expected: Mapping[str, Tensor], mapped: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> None:
    """Everything that does not fit, in one message, in the checkpoint's terms."""
    missing = [
        _in_their_terms(name)
        for name in expected
        if name not in mapped and not name.endswith("num_batches_tracked")
    ]
    left_over = [name for name in mapped if name not in expected]
    shapes = [
        f"{_in_their_terms(name)} {tuple(value.shape)} "
        f"(the model has {tuple(expected[name].shape)})"
        for name, value in mapped.items()
        if name in expected and value.shape != expected[name].shape
    ]
    dtypes = [
        f"{name} ({value.dtype})"
        for name, value in given.items()
        if not value.dtype.is_floating_point and not name.endswith("num_batches_tracked")
    ]
    faults = {
        "missing": missing,
        "left over": left_over,
        "of another shape": shapes,
        "not of floats": dtypes,
    }
    told = [f"{what}: {_listed(names)}" for what, names in faults.items() if names]
    if told:
        raise TbnError(
            f"the checkpoint does not fit the model; {'; '.join(told)}. Are the architecture, p "
            "and min_size those it was trained with?"
        )


def _in_their_terms(name: str) -> str:
    return name.replace(".magnitudes", ".weight")


def _listed(names) -> str:
    names = list(names)
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
