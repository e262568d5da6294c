"""From a checkpoint of the reference implementation to an exported program."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tbn_tvm.errors import TbnError, UsageError
from tbn_tvm.loading import call_factory, first_line, quiet

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram


def build_module(
    spec: str, p: int = 4, min_size: int | None = None, alpha: str = "tile"
) -> tuple[nn.Module, tuple, object]:
    """An untrained tiled module, with what exporting it takes.

    Parameters
    ----------
    spec : str
        A name in :mod:`tbn_tvm.models.registry`, with or without ``models:`` before it, or
        ``package.module:factory``; the factory returns a float or tiled module, example inputs
        and perhaps ``dynamic_shapes``. Float layers of it are tiled.
    p, min_size, alpha
        Of :func:`tbn_tvm.nn.tile_model`; a registered architecture has a ``min_size`` of its own.

    Returns
    -------
    module, example_inputs, dynamic_shapes

    Raises
    ------
    UsageError, TbnError
        Where there is no such model, or the factory does not return a module.
    """
    import torch

    from tbn_tvm.models.registry import MODELS, find_model
    from tbn_tvm.nn import tile_model

    name = spec.removeprefix("models:")
    if name in MODELS or ":" not in name:
        model = find_model(name)
        batch = torch.export.Dim("batch", min=1)
        shapes = tuple({0: batch} for _ in model.input_shapes)
        module = model.build(p, **({} if min_size is None else {"min_size": min_size}), alpha=alpha)
        return module, model.example_inputs(), shapes
    made = call_factory(spec)
    if not isinstance(made, tuple):
        raise UsageError(f"{spec}: the factory returned a program: expected (module, inputs)")
    given = {} if min_size is None else {"min_size": min_size}
    tile_model(made[0], p, alpha=alpha, start="copy", **given)
    return made


def read_checkpoint(path: str | os.PathLike):
    """The content of a file of ``torch.save``: tensors and plain containers, no code.

    Raises
    ------
    TbnError
        Where the file is missing, damaged, or holds objects of other classes.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise TbnError(f"{path}: no such file; expected a checkpoint of torch.save")
    try:
        with quiet():
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and torch raise many kinds
        raise TbnError(
            f"{path}: not a checkpoint of tensors, or damaged ({first_line(error)}); save a state "
            "dict with torch.save(model.state_dict(), ...)"
        ) from None


def convert_checkpoint(
    checkpoint: str | os.PathLike,
    spec: str,
    *,
    p: int = 4,
    min_size: int | None = None,
    alpha: str = "tile",
    match: str = "name",
) -> tuple[ExportedProgram, dict[str, str]]:
    """Load a checkpoint into a model and export it.

    Parameters
    ----------
    checkpoint : path
        Of :func:`read_checkpoint`.
    spec, p, min_size, alpha
        Of :func:`build_module`.
    match : {"name", "order"}
        Of :func:`tbn_tvm.nn.load_reference_state_dict`.

    Returns
    -------
    ExportedProgram
        Frozen.
    dict
        What became of each layer: ``tiled``, ``binary`` or ``float``.
    """
    import torch

    from tbn_tvm.nn import freeze, load_reference_state_dict

    content = read_checkpoint(checkpoint)
    if not isinstance(content, dict):
        raise TbnError(f"{checkpoint}: holds a {type(content).__name__}: expected a state dict")
    module, inputs, dynamic_shapes = build_module(spec, p, min_size, alpha)
    kinds = load_reference_state_dict(module, content, match=match)
    try:
        with quiet():
            program = torch.export.export(freeze(module), inputs, dynamic_shapes=dynamic_shapes)
    except TbnError:
        raise
    except Exception as error:
        raise TbnError(f"{spec}: torch.export refused it: {first_line(error)}") from None
    return program, kinds


def save_program(program: ExportedProgram, path: str | os.PathLike) -> Path:
    """Write a ``.pt2``; an existing file is replaced only once the new one is whole."""
    import torch

    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with quiet(), partial.open("wb") as file:
            torch.export.save(program, file)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return path


def check_program_path(path: str | os.PathLike) -> Path:
    """Refuse a destination that cannot be written, before anything is computed.

    Raises
    ------
    UsageError
        Where it does not end in ``.pt2`` or its folder does not exist.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise UsageError(f"-o {path}: expected a name that ends in .pt2")
    if not path.resolve().parent.is_dir():
        raise UsageError(f"-o {path}: its folder does not exist")
    if path.is_dir():
        raise UsageError(f"-o {path}: is a folder")
    return path
