"""A model as a bare-metal program: what projects and exports print as C."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tbn_tvm.errors import UsageError
from tbn_tvm.micro.quantization import Quantization
from tbn_tvm.signature import Signature, TensorSpec

if TYPE_CHECKING:
    from tbn_tvm.compiler import Imported
    from tbn_tvm.micro.planner import Plan
    from tbn_tvm.micro.program import Program
    from tbn_tvm.micro.quantization import Calibration
    from tbn_tvm.schedules.records import Records
    from tbn_tvm.targets import Board

IO = ("arena", "static")
"""Where inputs and outputs can lie."""


@dataclass(frozen=True)
class Lowered:
    """A model's kernels, constants and arena.

    Attributes
    ----------
    model : Imported
        What was lowered.
    program : Program
        Kernels, constants and calls.
    plan : Plan
        The arena.
    signature : Signature
        Inputs and outputs of one sample, as the device holds them.
    quantization : Quantization, optional
        Scales of inputs and outputs where they are integers.
    io : str
        Where inputs and outputs lie, one of ``IO``.
    kernels : list of dict
        The chosen kernels and who chose them, as
        :func:`tbn_tvm.schedules.records.report.used_kernels` lists them.
    """

    model: Imported
    program: Program
    plan: Plan
    signature: Signature
    quantization: Quantization | None
    io: str = "arena"
    kernels: list[dict] = field(default_factory=list)

    @property
    def memory(self) -> dict:
        """Planned bytes: ``weights``, ``arena``, ``arena_lower_bound``, and ``io``, the buffers of
        inputs and outputs where they are not in the arena."""
        placed = self.plan.offsets
        return {
            "weights": sum(constant.data.nbytes for constant in self.program.constants),
            "arena": self.plan.nbytes,
            "arena_lower_bound": self.plan.lower_bound,
            "io": sum(b.nbytes for b in self.program.buffers if b.name not in placed),
        }

    def sources(self) -> tuple[str, dict[str, str]]:
        """The generated C.

        Returns
        -------
        str
            SHA-256 of the source as it is with a digest of zeros, hexadecimal.
        dict of str to str
            Files by name, with the first eight bytes of that digest in them.
        """
        blank = self._generate(bytes(8))
        text = "".join(blank[name] for name in sorted(blank))
        digest = hashlib.sha256(text.encode()).hexdigest()
        return digest, self._generate(bytes.fromhex(digest)[:8])

    def _generate(self, digest: bytes) -> dict[str, str]:
        from tbn_tvm.compiler import versions
        from tbn_tvm.micro.codegen import ModelSource

        source = ModelSource(
            self.model.name,
            self.program,
            self.plan,
            self.signature,
            self.model.layers,
            digest,
            versions()["tbn_tvm"],
            self.quantization,
        )
        return source.files()


def lower_model(
    model: Imported,
    board: Board | None = None,
    *,
    dump_ir: Path | None = None,
    calibration: Calibration | None = None,
    io: str = "arena",
    records: str | os.PathLike | Records | None = None,
) -> Lowered:
    """Lower a model to kernels in portable C, for one sample.

    Parameters
    ----------
    model : Imported
        The model.
    board : Board, optional
        What for; any core by default.
    dump_ir : Path, optional
        A folder for the IR after each phase.
    calibration : Calibration, optional
        Samples from which int8 activations get their scales; float32 without.
    io : str
        ``arena``: inputs and outputs lie in the arena, where other buffers take their place when
        they are no longer, or not yet, needed. ``static``: they have memory of their own.
    records : path or Records, optional
        A folder of ``tbn-tvm tune``, whose choices of kernels go before the shipped ones, which
        go before the rules.

    Raises
    ------
    UsageError
        For another ``io``, or where samples depend on one another.
    TbnError
        For operators that have no bare-metal form.
    """
    from tbn_tvm import pipeline
    from tbn_tvm._tvm import told_as_ours
    from tbn_tvm.micro.planner import plan_arena
    from tbn_tvm.micro.program import extract_program
    from tbn_tvm.schedules.families import bare_metal
    from tbn_tvm.schedules.records import Records
    from tbn_tvm.schedules.records.report import used_kernels

    if io not in IO:
        raise UsageError(f"io {io!r}: expected {' or '.join(IO)}")
    check_samples_independent(model)
    target = bare_metal()
    if board is not None:
        target = bare_metal(board.features, board.ram_bytes - board.stack_bytes, board.core)
    if records is None or isinstance(records, (str, os.PathLike)):
        records = Records.load(target, records)
    phases, quantization = pipeline.cortex_m_phases(target, records), None
    mod = model.mod
    if calibration is not None:
        mod, quantization = calibration.apply(model, phases[0], target, dump_ir, records)
        phases = phases[1:]
    with told_as_ours("TVM cannot lower the model for a board"):
        mod = pipeline.run(mod, phases, target, dump_ir)
    program = extract_program(mod, model.name)
    signature = Signature(
        _named_in_c(model.signature.inputs),
        _named_in_c(model.signature.outputs),
    )
    if quantization is not None:
        signature = quantization.on_device(signature)
    apart = {*program.inputs, *program.outputs} if io == "static" else set()
    placed = [buffer for buffer in program.buffers if buffer.name not in apart]
    choices = [pair for pair in program.in_place_choices() if apart.isdisjoint(pair)]
    plan = plan_arena(placed, choices)
    return Lowered(model, program, plan, signature, quantization, io, used_kernels(mod))


def check_samples_independent(model: Imported) -> None:
    """Refuse a model that a board cannot run sample by sample.

    A board's program is planned for one sample; a batch runs it once for each. That is only right
    where the free dimension is the first axis of inputs and outputs, and where no sample's output
    depends on the others of its batch. The latter is tried out in PyTorch, on random inputs.

    Raises
    ------
    UsageError
        Where it is not so.
    """
    inputs, outputs = model.signature.inputs, model.signature.outputs
    free = {extent for spec in inputs for extent in spec.shape if isinstance(extent, str)}
    if not free:
        return
    fix = "export the model with one sample and no dynamic dimension"
    first = {spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], str)}
    for spec in (*inputs, *outputs):
        if any(isinstance(extent, str) for extent in spec.shape[1:]):
            raise UsageError(
                f"{spec}: a board can leave only the first axis free, as a number of samples; {fix}"
            )
    if len(free) > 1 or any(not spec.shape or spec.shape[0] not in first for spec in outputs):
        raise UsageError(
            f"inputs {', '.join(map(str, inputs))} and outputs {', '.join(map(str, outputs))} do "
            f"not share one free first axis, so a board cannot run sample by sample; {fix}"
        )
    if (model.program or model.onnx) and _samples_meet(model):
        raise UsageError(
            "a sample's output depends on the others of its batch (a mean over it, say), so a "
            f"board cannot run sample by sample; {fix}"
        )


def _named_in_c(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """One sample's tensors, named as generated C names them: a model's names may be any text."""
    named: dict[str, TensorSpec] = {}
    for spec in specs:
        name = re.sub(r"\W", "_", spec.name, flags=re.ASCII)
        while name in named:
            name += "_"
        named[name] = replace(spec.with_batch(1), name=name)
    return tuple(named.values())


def _samples_meet(model: Imported) -> bool:
    """Whether changing the second sample of a batch changes the first's outputs."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def drawn(spec: TensorSpec, size: int) -> torch.Tensor:
        shape = spec.with_batch(size).shape
        dtype = getattr(torch, spec.dtype)
        if dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(dtype)
        return torch.randint(0, 2, shape, generator=generator).to(dtype)

    batch = [drawn(spec, 2) for spec in model.signature.inputs]
    other = [value.clone() for value in batch]
    for spec, value in zip(model.signature.inputs, other, strict=True):
        if spec.shape and isinstance(spec.shape[0], str):
            value[1] = drawn(spec, 1)[0]
    try:
        results = [_outputs(model, tensors) for tensors in (batch, other)]
    except Exception:
        return False  # refused random inputs: nothing is known against the model
    return any(
        not torch.allclose(a[0].double(), b[0].double(), rtol=1e-3, atol=1e-5, equal_nan=True)
        for a, b in zip(*results, strict=True)
        if isinstance(a, torch.Tensor) and a.dim()
    )


def _outputs(model: Imported, tensors: list) -> list:
    """What the model's source computes; an ONNX model's is what was imported of it."""
    import torch
    from torch.utils import _pytree

    if model.program is None:
        from tbn_tvm.evaluate import evaluate

        made = evaluate(model, [tensor.numpy() for tensor in tensors])
        return [torch.from_numpy(array) for array in made]
    args, kwargs = _pytree.tree_unflatten(tensors, model.program.call_spec.in_spec)
    with torch.no_grad():
        return _pytree.tree_leaves(model.program.module()(*args, **kwargs))
