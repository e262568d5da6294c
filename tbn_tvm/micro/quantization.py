"""int8 activations on a device: what the host converts, and where the scales come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tbn_tvm.errors import UsageError
from tbn_tvm.quantize.scheme import Scheme, Tensor
from tbn_tvm.signature import Signature

if TYPE_CHECKING:
    import tvm

    from tbn_tvm.compiler import Imported
    from tbn_tvm.quantize.model import QuantizedModel


@dataclass(frozen=True)
class Quantization:
    """Scales of a project's inputs and outputs, in the signature's order."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def to_dict(self) -> dict:
        """For metadata."""
        return {
            "inputs": [tensor.to_dict() for tensor in self.inputs],
            "outputs": [tensor.to_dict() for tensor in self.outputs],
        }

    @classmethod
    def from_dict(cls, fields: dict | None) -> Quantization | None:
        """The inverse of :meth:`to_dict`; None where there is none."""
        if fields is None:
            return None
        return cls(*(tuple(Tensor(**t) for t in fields[end]) for end in ("inputs", "outputs")))

    def on_device(self, signature: Signature) -> Signature:
        """The signature in the device's integers."""
        return Signature(
            tuple(
                replace(spec, dtype=tensor.dtype)
                for spec, tensor in zip(signature.inputs, self.inputs, strict=True)
            ),
            tuple(
                replace(spec, dtype=tensor.dtype)
                for spec, tensor in zip(signature.outputs, self.outputs, strict=True)
            ),
        )


@dataclass(frozen=True)
class Calibration:
    """Samples that scales are chosen from.

    Attributes
    ----------
    samples : dict of str to numpy.ndarray
        By input name, samples along the first axis.
    scheme : Scheme
        Of the int8 tensors.
    """

    samples: dict[str, np.ndarray]
    scheme: Scheme = Scheme.AFFINE

    def quantized(self, model: Imported, phase=None, dump_ir: Path | None = None) -> QuantizedModel:
        """The model in integers, as NumPy defines it.

        Raises
        ------
        UsageError
            Where the samples do not suit the model.
        TbnError
            For an operator without an integer form.
        """
        import tvm

        from tbn_tvm import pipeline
        from tbn_tvm.quantize import calibrate, quantize

        target = tvm.target.Target({"kind": "c"})
        phase = phase or pipeline.cortex_m_phases(target)[0]
        signature = model.signature
        # Any number of samples, also for a model of one.
        free = replace(
            signature,
            inputs=tuple(
                replace(spec, shape=("samples", *spec.shape[1:])) for spec in signature.inputs
            ),
        )
        arrays = free.bind((), self.samples)
        wrong = [spec for spec in signature.inputs if spec.dtype != "float32"]
        if wrong:
            raise UsageError(f"{wrong[0]}: int8 activations need float32 inputs")
        several = [s for s in signature.inputs if isinstance(s.shape[0], int) and s.shape[0] != 1]
        if several:
            raise UsageError(
                f"{several[0]}: int8 activations need models of one sample; export it with a batch "
                "of 1, or of any size (dynamic_shapes)"
            )
        counts = {len(array) for array in arrays}
        if len(counts) != 1:
            raise UsageError(f"calibration: inputs have {sorted(counts)} samples: expected as many")
        mod = pipeline.run(model.mod, [phase], target, dump_ir)
        return quantize(mod, calibrate(mod, list(arrays)), self.scheme)

    def apply(
        self, model: Imported, phase, target: tvm.target.Target, dump_ir: Path | None, records=None
    ) -> tuple[tvm.IRModule, Quantization]:
        """The module in integers, and the scales of its ends."""
        from tbn_tvm.quantize import lower

        quantized = self.quantized(model, phase, dump_ir)
        ends = Quantization(
            tuple(quantized.tensors[name] for name in quantized.inputs),
            tuple(quantized.tensors[name] for name in quantized.outputs),
        )
        return lower(quantized, target, records), ends
