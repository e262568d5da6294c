"""The generated C: one header with the contract, one source with weights, arena and kernels."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from tbn_tvm.micro.kernels import Kernel, c_type
from tbn_tvm.micro.planner import Plan
from tbn_tvm.micro.program import Constant, Program
from tbn_tvm.micro.quantization import Quantization
from tbn_tvm.schedules.cortex_m.mve import PREFIX as MVE_PREFIX
from tbn_tvm.schedules.cortex_m.tables import PAIR_FUNCTIONS
from tbn_tvm.signature import Signature

_LINE = 100


@dataclass(frozen=True)
class ModelSource:
    """Everything the templates print about a model.

    Attributes
    ----------
    name : str
        The model's name, a C identifier.
    program : Program
        Kernels, constants and calls.
    plan : Plan
        The arena.
    signature : Signature
        Static inputs and outputs.
    layers : list of LayerInfo
        The model's layers, in the order of execution.
    digest : bytes
        Eight bytes that tell this build from others.
    version : str
        Of tbn-tvm.
    quantization : Quantization, optional
        Scales of inputs and outputs where they are integers.
    """

    name: str
    program: Program
    plan: Plan
    signature: Signature
    layers: list
    digest: bytes
    version: str
    quantization: Quantization | None = None

    def files(self) -> dict[str, str]:
        """C files by name."""
        return {
            f"{self.name}.h": self._render("model.h.jinja"),
            f"{self.name}.c": self._render("model.c.jinja"),
            "tbn_model.c": self._render("tbn_model.c.jinja"),
        }

    def _render(self, template: str) -> str:
        program, plan = self.program, self.plan
        constants = {constant.name for constant in program.constants}
        sizes = {buffer.name: buffer.nbytes for buffer in program.buffers}
        kernels = self._kernels()
        apart = self._apart()
        comments = self._comments()
        owners = self._owners(comments)
        parameters = {kernel.name: kernel.parameters for kernel in kernels}

        def argument(name: str, parameter) -> str:
            if name in constants:
                return name
            const = "" if parameter.written else "const "
            place = apart[name]["name"] if name in apart else self._in_arena(name)
            return f"({const}{c_type(parameter.dtype)} *){place}"

        return (
            _environment()
            .get_template(template)
            .render(
                name=self.name,
                NAME=self.name.upper(),
                version=self.version,
                digest=", ".join(f"0x{byte:02x}" for byte in self.digest),
                kernels=kernels,
                constants=[
                    {
                        "type": c_type(str(constant.data.dtype)),
                        "name": constant.name,
                        "size": constant.data.size,
                        "comment": f"{owners.get(constant.name, '')}{constant.comment}",
                        "literals": _initialiser(constant),
                    }
                    for constant in program.constants
                ],
                uses_pairs=any(name in k.body for k in program.kernels for name in PAIR_FUNCTIONS),
                uses_mve=any(MVE_PREFIX in kernel.body for kernel in program.kernels),
                uses_infinity=any("inff" in kernel.body for kernel in program.kernels),
                arena_bytes=plan.nbytes,
                arena_map=sorted(
                    (
                        (plan.offsets[buffer.name], buffer, plan.in_place.get(buffer.name))
                        for buffer in program.buffers
                        if buffer.name not in apart
                    ),
                    key=lambda entry: (entry[0], entry[1].first),
                ),
                apart=list(apart.values()),
                calls=[
                    {
                        "kernel": step.kernel,
                        "comment": comment,
                        "arguments": [
                            argument(name, parameter)
                            for name, parameter in zip(
                                step.arguments, parameters[step.kernel], strict=True
                            )
                        ],
                    }
                    for step, comment in zip(program.steps, comments, strict=True)
                ],
                results=[
                    {
                        "place": apart[name]["name"] if name in apart else self._in_arena(name),
                        "bytes": sizes[name],
                    }
                    for index in range(len(program.steps))
                    for name, _dtype in program.results(index)
                ],
                inputs=self._tensors(
                    self.signature.inputs,
                    program.inputs,
                    self.quantization and self.quantization.inputs,
                ),
                outputs=self._tensors(
                    self.signature.outputs,
                    program.outputs,
                    self.quantization and self.quantization.outputs,
                ),
            )
        )

    def _comments(self) -> list[str]:
        """What each step does, in terms of the model's layers; empty where there is nothing to say.

        Each tiled layer has one product, and both keep their order through lowering.
        """
        tiled = [layer for layer in self.layers if layer.p is not None]
        products = sum(step.product for step in self.program.steps)
        if len(tiled) != products:
            return [""] * len(self.program.steps)
        layers, comments = iter(tiled), []
        for step in self.program.steps:
            if not step.product:
                comments.append("")
                continue
            layer = next(layers)
            shape = " x ".join(map(str, layer.shape))
            comments.append(f"{layer.name}: {shape}, p = {layer.p}, {layer.alignment}")
        return comments

    def _owners(self, comments: list[str]) -> dict[str, str]:
        """The layer that each constant belongs to: that of the product that reads it, or of the
        step that reads a product's results."""
        made: dict[str, str] = {}
        owners: dict[str, str] = {}
        for step, comment in zip(self.program.steps, comments, strict=True):
            layer = comment.partition(":")[0]
            layer = layer or next((made[name] for name in step.arguments if name in made), "")
            if not layer:
                continue
            for name in step.arguments:
                owners.setdefault(name, f"{layer}: ")
            if comment:
                made[step.arguments[2]] = layer
        return owners

    def _kernels(self) -> list[Kernel]:
        """The program's, told which of their parameters are one buffer in some call."""
        sharing: dict[str, set] = {}
        for step in self.program.steps:
            for written, name in enumerate(step.arguments):
                over = self.plan.in_place.get(name)
                # A buffer is made by one step, which also reads what it takes the place of.
                if over in step.arguments:
                    reads = [at for at, other in enumerate(step.arguments) if other == over]
                    sharing.setdefault(step.kernel, set()).update((at, written) for at in reads)
        return [kernel.sharing(sharing.get(kernel.name, ())) for kernel in self.program.kernels]

    def _in_arena(self, buffer: str) -> str:
        return f"(arena.bytes + {self.plan.offsets[buffer]})"

    def _apart(self) -> dict[str, dict]:
        """The C arrays of inputs and outputs that are not in the arena, by buffer."""
        apart: dict[str, dict] = {}
        for kind, specs, buffers in (
            ("Input", self.signature.inputs, self.program.inputs),
            ("Output", self.signature.outputs, self.program.outputs),
        ):
            for spec, buffer in zip(specs, buffers, strict=True):
                if buffer not in self.plan.offsets and buffer not in apart:
                    apart[buffer] = {
                        "name": f"buffer_{len(apart)}",
                        "type": c_type(spec.dtype),
                        "count": int(np.prod(spec.shape, dtype=np.int64)),
                        "comment": f'{kind} "{spec.name}"',
                    }
        return apart

    def _tensors(self, specs, buffers, scales) -> list[dict]:
        apart = self._apart()
        return [
            {
                "name": spec.name,
                "NAME": spec.name.upper(),
                "type": c_type(spec.dtype),
                "shape": " x ".join(map(str, spec.shape)) or "scalar",
                "count": int(np.prod(spec.shape, dtype=np.int64)),
                "bytes": spec.nbytes,
                "place": apart[buffer]["name"] if buffer in apart else self._in_arena(buffer),
                "scale": None if scale is None else _float(np.float32(scale.scale)),
                "zero_point": None if scale is None else scale.zero_point,
            }
            for spec, buffer, scale in zip(
                specs, buffers, scales or [None] * len(specs), strict=True
            )
        ]


def _initialiser(constant: Constant) -> str:
    """The values of an array, wrapped; floats with as many digits as they need to come back."""
    data = constant.data
    if not np.isfinite(data).all():
        # Only infinities can be meant: NaN weights were refused before.
        literals = [_infinite(value) if np.isinf(value) else _float(value) for value in data]
    elif data.dtype.kind == "f":
        literals = [_float(value) for value in data]
    elif data.dtype.kind == "b":
        literals = [str(int(value)) for value in data]
    elif data.dtype == np.uint32:
        literals = [f"0x{value:08x}u" for value in data]
    elif data.dtype == np.uint8:
        literals = [f"0x{value:02x}" for value in data]
    else:
        literals = [_integer(int(value), data.dtype) for value in data]
    lines, line = [], " "
    for literal in literals:
        if len(line) + len(literal) + 2 > _LINE:
            lines.append(line)
            line = " "
        line += f" {literal},"
    return "\n".join([*lines, line])


def _float(value: np.floating) -> str:
    text = repr(float(value)) if value.dtype == np.float64 else str(value)
    if not any(mark in text for mark in ".en"):
        text += ".0"
    return text if value.dtype == np.float64 else f"{text}f"


def _infinite(value: np.floating) -> str:
    return "-INFINITY" if value < 0 else "INFINITY"


def _integer(value: int, dtype: np.dtype) -> str:
    if dtype == np.int64:
        # INT64_MIN has no literal of its own in C.
        return "INT64_MIN" if value == -(2**63) else f"INT64_C({value})"
    if dtype == np.int32 and value == -(2**31):
        return "INT32_MIN"
    return f"UINT64_C({value})" if dtype == np.uint64 else str(value)


@functools.cache
def _environment():
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("tbn_tvm.micro", "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
