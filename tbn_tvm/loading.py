"""What the command line calls MODEL: files, factories and registered architectures."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from tbn_tvm.errors import TbnError, ToolError, UsageError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from tbn_tvm.frontend.onnx import OnnxModel

# A generated <name>.h or <name>_run of these names would meet the C library's or the language's.
_C_WORDS = """
    assert complex ctype errno fenv float inttypes iso646 limits locale math setjmp signal stdarg
    stdbool stddef stdint stdio stdlib string tgmath time wchar wctype auto break case char const
    continue default do double else enum extern for goto if inline int long main register restrict
    return short signed sizeof static struct switch typedef union unsigned void volatile while
"""
_TAKEN = frozenset(_C_WORDS.split())


_EXPECTED = "a .pt2 or .onnx file, package.module:factory or models:NAME"


def load_model(spec: str | os.PathLike) -> ExportedProgram | OnnxModel:
    """Load what the command line calls MODEL.

    Parameters
    ----------
    spec : str or path
        A ``.pt2`` file of ``torch.export.save``; an ``.onnx`` file, with its external data in the
        same folder; ``package.module:factory``; or ``models:NAME``, an architecture of
        :mod:`tbn_tvm.models.registry`, untrained, with p = 4 and a free batch (a module ``models``
        of the user's own goes before). The factory takes no arguments and returns an exported
        program, or a pair of a module and a tuple of example inputs, or a triple that adds
        ``dynamic_shapes`` for ``torch.export.export``.

    Raises
    ------
    TbnError
        Where it is missing or no model.
    """
    text = os.fspath(spec)
    if not os.path.exists(text) and ":" in text and not text.endswith((".pt2", ".onnx")):
        return _from_registry(text) if _names_an_architecture(text) else _from_factory(text)
    path = Path(text)
    if not path.exists():
        raise TbnError(f"{path}: no such file; expected {_EXPECTED}")
    if path.is_dir():
        raise TbnError(f"{path}: is a folder; expected {_EXPECTED}")
    if path.suffix == ".onnx":
        return _from_onnx_file(path)
    from tbn_tvm.frontend.pt2 import load_program

    try:
        with quiet():
            return load_program(path)
    except Exception as error:  # torch raises many kinds on input that is no program
        from tbn_tvm.runtime import is_artifact

        if is_artifact(path):
            raise TbnError(
                f"{path}: is an artifact, compiled already; expected the model that it was "
                f"compiled from: {_EXPECTED}"
            ) from None
        # Torch refers to its log, which nobody sees.
        reason = first_line(error).partition(" Please check the warnings")[0]
        raise TbnError(
            f"{path}: not a program saved by torch.export.save, or damaged ({reason}); export the "
            "model with torch.export.export and save that"
        ) from None


def _from_onnx_file(path: Path) -> OnnxModel:
    try:
        import onnx  # noqa: F401
    except ModuleNotFoundError:
        raise ToolError(
            f'{path}: reading it takes onnx; run: pip install "tbn-tvm[onnx]"'
        ) from None
    from tbn_tvm.frontend.onnx import load_onnx

    with quiet():
        return load_onnx(path)


def default_name(model: str | os.PathLike) -> str:
    """The name a file or factory gives its model."""
    text = os.fspath(model)
    if ":" in text and not os.path.exists(text):
        return c_identifier(text.rpartition(":")[2])
    return c_identifier(Path(text).stem)


def c_identifier(text: str) -> str:
    """The nearest lower-case C identifier."""
    cleaned = "".join(c if c.isascii() and c.isalnum() else "_" for c in text.lower()).strip("_")
    if not cleaned or cleaned[0].isdigit() or cleaned in _TAKEN or cleaned.startswith("tbn_"):
        cleaned = f"model_{cleaned}".rstrip("_")
    return cleaned


@contextlib.contextmanager
def quiet():
    """Silence what importers warn, log and print about their own insides; exceptions pass."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def first_line(error: BaseException) -> str:
    """The part of an exception that a reader needs."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _names_an_architecture(spec: str) -> bool:
    """Whether ``models:`` is the registry: a user's own module of that name must stay reachable."""
    if not spec.startswith("models:"):
        return False
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.util.find_spec("models") is None
    finally:
        sys.path.remove(os.getcwd())


def _from_registry(spec: str) -> ExportedProgram:
    from tbn_tvm.models.registry import find_model

    model = find_model(spec.removeprefix("models:"))
    with quiet():
        return model.program()


def usual_min_size(spec: str | os.PathLike) -> int:
    """Weights from which on a layer is tiled where nothing else is said (lambda of the paper).

    Parameters
    ----------
    spec : str or path
        As of :func:`load_model`. Small architectures of the registry have a value of their own;
        all else has the paper's 64,000.
    """
    from tbn_tvm.models.registry import find_model

    text = os.fspath(spec)
    if os.path.exists(text) or not _names_an_architecture(text):
        return 64_000
    return find_model(text.removeprefix("models:")).min_size


def call_factory(spec: str) -> ExportedProgram | tuple:
    """What the factory that ``package.module:factory`` names returns.

    Returns
    -------
    ExportedProgram or tuple
        A program, or a module, a tuple of example inputs and ``dynamic_shapes`` or None.

    Raises
    ------
    TbnError
        Where there is no such factory, it fails, or returns something else.
    """
    import torch

    module_name, _, attribute = spec.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise UsageError(f"{spec!r}: no such file, and not of the form package.module:factory")
    sys.path.insert(0, os.getcwd())
    try:
        factory = getattr(importlib.import_module(module_name), attribute, None)
    except ModuleNotFoundError as error:
        raise TbnError(f"{spec}: {error}; run from the folder it is in, or install it") from None
    except (Exception, SystemExit) as error:
        raise TbnError(f"{spec}: importing it failed: {first_line(error)}") from error
    finally:
        sys.path.remove(os.getcwd())
    if not callable(factory):
        raise TbnError(f"{spec}: module {module_name} has no callable {attribute!r}")
    try:
        made = factory()
    except (Exception, SystemExit) as error:
        raise TbnError(f"{spec}: the factory failed: {first_line(error)}") from error
    if isinstance(made, torch.export.ExportedProgram):
        return made
    if (
        isinstance(made, tuple)
        and len(made) in (2, 3)
        and isinstance(made[0], torch.nn.Module)
        and isinstance(made[1], tuple)
    ):
        return (*made, None)[:3]
    raise TbnError(
        f"{spec}: the factory returned {type(made).__name__}: expected an ExportedProgram, or "
        "(module, example_inputs[, dynamic_shapes])"
    )


def _from_factory(spec: str) -> ExportedProgram:
    import torch

    from tbn_tvm.nn import freeze

    made = call_factory(spec)
    if not isinstance(made, tuple):
        return made
    module, inputs, dynamic_shapes = made
    try:
        with quiet():
            return torch.export.export(freeze(module), inputs, dynamic_shapes=dynamic_shapes)
    except Exception as error:
        raise TbnError(f"{spec}: torch.export refused it: {first_line(error)}") from None
