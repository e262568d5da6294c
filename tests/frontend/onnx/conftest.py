"""Small ONNX models, and ONNX Runtime as the judge of what they compute."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tbn_tvm.tiling import TiledTensor


def tiled_weight(shape: tuple[int, ...], p: int = 4, seed: int = 0) -> TiledTensor:
    """A tiled weight with an alpha for each use of its random tile."""
    rng = np.random.default_rng(seed)
    signs = rng.random(int(np.prod(shape)) // p) < 0.5
    return TiledTensor.from_signs(signs, rng.random(p) + 0.5, shape)


class Models:
    """Builds models of one graph."""

    tiled_weight = staticmethod(tiled_weight)

    @staticmethod
    def make(nodes, inputs, outputs, arrays=None, *, opset=18, functions=(), imports=()):
        """A model; inputs and outputs map names to extents, or to pairs of type and extents."""

        def value(name, given):
            dtype, shape = given if isinstance(given, tuple) else ("FLOAT", given)
            return helper.make_tensor_value_info(name, getattr(TensorProto, dtype), shape)

        graph = helper.make_graph(
            list(nodes),
            "graph",
            [value(name, given) for name, given in inputs.items()],
            [value(name, given) for name, given in outputs.items()],
            [
                numpy_helper.from_array(np.asarray(array), name)
                for name, array in (arrays or {}).items()
            ],
        )
        return helper.make_model(
            graph,
            ir_version=10,
            functions=list(functions),
            opset_imports=[
                helper.make_opsetid("", opset),
                *(helper.make_opsetid(domain, version) for domain, version in imports),
            ],
        )

    @staticmethod
    def expected(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
        """What ONNX Runtime computes."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return session.run(None, feeds)


@pytest.fixture(scope="session")
def models() -> type[Models]:
    return Models
