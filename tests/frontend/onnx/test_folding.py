"""Constant subgraphs: what cannot be computed is refused in words."""

import numpy as np
import pytest
from onnx import helper

from tbn_tvm.errors import FormatError
from tbn_tvm.frontend.onnx import prepare
from tbn_tvm.importing import import_model


@pytest.mark.parametrize("limit", [np.inf, np.nan])
def test_a_range_without_end_is_refused(models, limit):
    model = models.make(
        [helper.make_node("Range", ["start", "limit", "delta"], ["y"], "steps")],
        {"x": [2]},
        {"y": ["n"]},
        {"start": np.float32(0), "limit": np.float32(limit), "delta": np.float32(1)},
    )
    with pytest.raises(FormatError, match="'steps'"):
        import_model(prepare(model))
