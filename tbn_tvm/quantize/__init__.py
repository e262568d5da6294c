"""Static int8 activations: scales from calibration, integer arithmetic only, a NumPy reference."""

from tbn_tvm.quantize.calibrate import calibrate
from tbn_tvm.quantize.convert import quantize
from tbn_tvm.quantize.lower import lower
from tbn_tvm.quantize.model import QuantizedModel
from tbn_tvm.quantize.scheme import Scheme, Tensor

__all__ = ["QuantizedModel", "Scheme", "Tensor", "calibrate", "lower", "quantize"]
