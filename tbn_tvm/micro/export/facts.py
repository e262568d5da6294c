"""What the templates of exports print about a model."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tbn_tvm.micro.kernels import c_name, c_type

if TYPE_CHECKING:
    from tbn_tvm.micro.lower import Lowered
    from tbn_tvm.targets import Board


@dataclass(frozen=True)
class TensorFacts:
    """An input or output in C.

    Attributes
    ----------
    name, identifier, dtype, type, shape : str
        In the model; as a member of a struct; NumPy's element type and C's; extents, for reading.
    count, bytes : int
        Elements, and their size.
    accessor, macro : str
        The function that gives its place; what its macros begin with.
    quantized : bool
        Whether it holds integers that stand for real numbers.
    lowest, highest : int
        Of the integers, where it does.
    """

    name: str
    identifier: str
    dtype: str
    type: str
    shape: str
    count: int
    bytes: int
    accessor: str
    macro: str
    quantized: bool
    lowest: int = 0
    highest: int = 0


@dataclass(frozen=True)
class Facts:
    """A lowered model and its C.

    Attributes
    ----------
    lowered : Lowered
        Program, arena and signature.
    digest : str
        SHA-256 of the generated C, hexadecimal.
    sources : dict of str to str
        The generated C, by file name.
    versions : dict
        Of tbn-tvm, TVM and its FFI.
    board : Board, optional
        What the C is for; any core without.
    """

    lowered: Lowered
    digest: str
    sources: dict[str, str] = field(repr=False)
    versions: dict
    board: Board | None = None

    @property
    def name(self) -> str:
        """The model's name, a C identifier."""
        return self.lowered.model.name

    @property
    def title(self) -> str:
        """The name in the way of classes: ``MnistMlp``."""
        return "".join(part[:1].upper() + part[1:] for part in self.name.split("_")) or "Model"

    @property
    def target(self) -> str:
        """The board's name, or ``c``."""
        return "c" if self.board is None else self.board.name

    @property
    def header(self) -> str:
        """``<name>.h``: the contract."""
        return self.sources[f"{self.name}.h"]

    @property
    def source(self) -> str:
        """``<name>.c``: weights, arena and kernels."""
        return self.sources[f"{self.name}.c"]

    @property
    def includes(self) -> dict[str, str]:
        """What else the source includes, to lie beside it."""
        known = (f"{self.name}.h", f"{self.name}.c", "tbn_model.c")
        return {name: text for name, text in self.sources.items() if name not in known}

    def beside(self, folder: str) -> dict[str, bytes]:
        """:attr:`includes` as files of a folder, whose path ends in a slash, or of none."""
        return {f"{folder}{name}": text.encode() for name, text in self.includes.items()}

    @property
    def inputs(self) -> list[TensorFacts]:
        """In the model's order."""
        scales = self.lowered.quantization and self.lowered.quantization.inputs
        return self._tensors("input", self.lowered.signature.inputs, scales)

    @property
    def outputs(self) -> list[TensorFacts]:
        """In the model's order."""
        scales = self.lowered.quantization and self.lowered.quantization.outputs
        return self._tensors("output", self.lowered.signature.outputs, scales)

    def render(self, template: str, **more) -> bytes:
        """A template of this package, filled in."""
        text = (
            _environment()
            .get_template(template)
            .render(
                name=self.name,
                NAME=self.name.upper(),
                title=self.title,
                version=self.versions["tbn_tvm"],
                digest=self.digest,
                inputs=self.inputs,
                outputs=self.outputs,
                quantized=self.lowered.quantization is not None,
                memory=self.lowered.memory,
                layers=self.lowered.model.layers,
                target=self.target,
                board=self.board,
                **more,
            )
        )
        return text.encode()

    def _tensors(self, end: str, specs, scales) -> list[TensorFacts]:
        tensors = []
        for spec, scale in zip(specs, scales or [None] * len(specs), strict=True):
            info = np.iinfo(spec.dtype) if scale is not None else None
            tensors.append(
                TensorFacts(
                    name=spec.name,
                    identifier=c_name(spec.name),
                    dtype=spec.dtype,
                    type=c_type(spec.dtype),
                    shape=" x ".join(map(str, spec.shape)) or "scalar",
                    count=int(np.prod(spec.shape, dtype=np.int64)),
                    bytes=spec.nbytes,
                    accessor=f"{self.name}_{end}_{spec.name}",
                    macro=f"{self.name}_{end}_{spec.name}".upper(),
                    quantized=scale is not None,
                    lowest=int(info.min) if info else 0,
                    highest=int(info.max) if info else 0,
                )
            )
        return tensors


@functools.cache
def _environment():
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("tbn_tvm.micro.export", "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
