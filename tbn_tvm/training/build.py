"""The model of a recipe: tiled, or its float twin; from a random start or a float model."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from tbn_tvm.errors import TbnError, UsageError
from tbn_tvm.models.registry import find_model
from tbn_tvm.nn import ops, tile_model
from tbn_tvm.nn.base import TiledLayer
from tbn_tvm.nn.reference import unwrapped
from tbn_tvm.training.data import DataSet
from tbn_tvm.training.recipe import Recipe


def build_model(recipe: Recipe, twin: bool, samples: tuple[Tensor, ...] | None = None) -> nn.Module:
    """The model that training starts from, on the CPU.

    Parameters
    ----------
    recipe : Recipe
        Its seed decides the random start.
    twin : bool
        Whether layers stay float.
    samples : tuple of Tensor, optional
        Inputs of the model, with which a start from a float model is fitted and its outputs are
        permuted.

    Raises
    ------
    UsageError
        Where ``p`` does not divide the weights of a layer that is to be tiled, or the
        architecture does not take the sizes.
    TbnError
        Where the float model to start from is not of this architecture.
    """
    torch.manual_seed(recipe.seed)
    try:
        model = find_model(recipe.model).build(p=None, **recipe.sizes)
    except TypeError as error:
        raise UsageError(f"model {recipe.model}: {error}") from None
    if recipe.init:
        _load_float(model, Path(recipe.init))
    if twin:
        return model
    start = {"start": "nearest" if recipe.init else "copy"}
    if recipe.init and samples is not None:
        start |= {"calibration": samples, "permute": True}
    report = tile_model(
        model,
        recipe.p,
        recipe.min_size,
        recipe.skip,
        alpha=recipe.alpha,
        alpha_from=recipe.alpha_from,
        gradient=recipe.gradient,
        **start,
    )
    for layer in report.tiled:
        if "does not divide" in layer.reason:
            weights = torch.Size(layer.shape).numel()
            raise UsageError(
                f"p = {recipe.p} does not divide the {weights:,} weights of {layer.name}; the "
                f"largest divisor below it is {layer.p}"
            )
    if recipe.start == "kaiming" and not recipe.init:
        for module in model.modules():
            if isinstance(module, TiledLayer):
                module.reset_parameters()
    return model


@torch.no_grad()
def check_fit(
    model: nn.Module, inputs: tuple[Tensor, ...], targets: Tensor, data: DataSet, recipe: Recipe
) -> None:
    """Refuse a model that does not take a data set's inputs, or does not give what it asks for.

    Parameters
    ----------
    model : nn.Module
        On the CPU.
    inputs, targets : tuple of Tensor, Tensor
        A batch as the model takes it.
    data : DataSet
        Its number of classes.
    recipe : Recipe
        Its task.

    Raises
    ------
    UsageError
        With both shapes.
    """
    training = model.training
    shapes = ", ".join(str(tuple(x.shape[1:])) for x in inputs)
    try:
        outputs = model.eval()(*inputs)
    except (RuntimeError, ValueError, TypeError, TbnError) as error:
        told = str(error).splitlines()[0]
        raise UsageError(
            f"model {recipe.model} does not take samples of {recipe.data}, {shapes}: {told}"
        ) from None
    model.train(training)
    wanted = tuple(targets.shape[1:])
    if recipe.task != "forecasting":
        wanted = (data.classes, *wanted)
    if tuple(outputs.shape[1:]) != wanted:
        raise UsageError(
            f"model {recipe.model} gives {tuple(outputs.shape[1:])} for a sample of {recipe.data}, "
            f"expected {wanted} for {recipe.task}; see sizes"
        )


def _load_float(model: nn.Module, path: Path) -> None:
    """Take all weights and statistics from a float model's file, or a tiled one's as float."""
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    state = expanded(float_state(path), shapes)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        told = " ".join(str(error).split("\n\t")[1:2]) or str(error).splitlines()[0]
        raise TbnError(f"{path}: not a float model of this architecture: {told}") from None


def float_state(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of an exported model (``.pt2``), or one saved by ``torch.save``.

    Raises
    ------
    TbnError
        Where the file cannot be read as either.
    """
    if path.suffix == ".pt2":
        from tbn_tvm import load_model

        return dict(load_model(path).state_dict)
    if not path.is_file():
        raise TbnError(f"{path}: no such file; expected a float model to start from")
    try:
        state = dict(torch.load(path, weights_only=True, map_location="cpu"))
    except Exception as error:  # unpickling and zip raise many kinds on damaged input
        raise TbnError(
            f"{path}: holds no state dict, or is damaged ({type(error).__name__}); expected a .pt2 "
            "model, or what torch.save made of a state dict"
        ) from None
    return unwrapped(state)


def expanded(state: dict[str, Tensor], shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """The state dict of a float model from that of one with frozen tiled layers.

    Parameters
    ----------
    state : dict of str to Tensor
        ``tile``, uint8 of one dimension, and ``alpha``, float32 ``(1,)`` or ``(p,)``, in the place
        of some layers' ``weight``.
    shapes : dict of str to torch.Size
        Of the float model's state dict. Layers that do not fit them are left as they are.

    Returns
    -------
    dict of str to Tensor
        With dense float32 weights for tiles and alphas; the rest is shared with ``state``.
    """
    state = dict(state)
    for name in [key.removesuffix("tile") for key in state if key.endswith(".tile")]:
        tile, alphas = state[name + "tile"], state.get(name + "alpha")
        shape = shapes.get(name + "weight")
        if alphas is None or shape is None:
            continue
        # With one alpha for the layer the number of bits says how often the tile is used.
        uses = len(alphas) if len(alphas) > 1 else max(1, shape.numel() // (8 * len(tile)))
        if shape.numel() % uses == 0 and len(tile) == math.ceil(shape.numel() / uses / 8):
            del state[name + "tile"], state[name + "alpha"]
            state[name + "weight"] = ops.expand_tile(tile, alphas, list(shape), uses)
    return state


def load_teacher(recipe: Recipe, device: torch.device) -> nn.Module:
    """The model to distil from, in eval mode: an exported one, or the recipe's float twin."""
    from tbn_tvm import load_model

    path = Path(recipe.teacher)
    if path.suffix == ".pt2":
        return load_model(path).module().to(device)
    model = find_model(recipe.model).build(p=None, **recipe.sizes)
    _load_float(model, path)
    return model.eval().requires_grad_(False).to(device)
