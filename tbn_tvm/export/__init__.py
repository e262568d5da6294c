"""Models out to other formats."""

from tbn_tvm.export.write import DEFAULT_OPSET, Exported, to_onnx

__all__ = ["DEFAULT_OPSET", "Exported", "to_onnx"]
