"""Models as ONNX files: outputs in ONNX Runtime, content, bytes, refusals."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from tbn_tvm import op
from tbn_tvm.errors import TbnError, UsageError
from tbn_tvm.export import functions, to_onnx
from tbn_tvm.export.forms import layers_of
from tbn_tvm.importing import import_model
from tbn_tvm.inspect import tiled_tensor
from tbn_tvm.models.registry import MODELS
from tbn_tvm.nn import TiledLinear, freeze
from tbn_tvm.testing.every_layer import every_layer, tiled_layers, with_dynamic_batch
from tbn_tvm.tiling import TiledTensor

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

ONE_SIZE_EACH = {model.factory: name for name, model in reversed(MODELS.items())}.values()
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3}


def run(path, inputs) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})


def assert_same_outputs(path, model, inputs, tolerance):
    with torch.no_grad():
        expected = model(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for y, wanted in zip(run(path, inputs), expected, strict=True):
        assert str(y.dtype) == str(wanted.dtype).removeprefix("torch.")
        wanted = wanted.double().numpy()
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(y, wanted, rtol=0, atol=tolerance * scale)


def imported_tensors(path) -> list[TiledTensor]:
    """The weights of a file's tiled products, after our own importer has read it."""
    main = import_model(path).mod["main"]
    values = [binding.value for block in main.body.blocks for binding in block.bindings]
    return [tiled_tensor(value) for value in values if op.is_product(value)]


def small_program(**layer) -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    model = torch.nn.Sequential(TiledLinear(12, 8, **layer), torch.nn.ReLU())
    return with_dynamic_batch(freeze(model), (torch.randn(2, 12),))


@pytest.mark.parametrize("name", ONE_SIZE_EACH)
def test_an_architecture_computes_the_same_from_the_same_tiled_tensors(name, tmp_path):
    entry = MODELS[name].reduced()
    torch.manual_seed(0)
    model = entry.build()
    program = entry.export(model)
    written = to_onnx(program, tmp_path / "model.onnx")
    for batch in (1, 3):
        inputs = entry.example_inputs(batch)
        assert_same_outputs(written.path, model, inputs, 1e-4)
    file = onnx.load(written.path)
    tiled = tiled_layers(model)
    assert {name: layer.weight for name, layer in layers_of(file)} == tiled
    assert Counter(imported_tensors(written.path)) == Counter(tiled.values())
    # Nothing but bits, alphas and what is no tiled weight in the model either: parameters, buffers
    # that are not saved (Swin's positions and masks, which are folded), and a few sizes and axes.
    others = [v for v in program.state_dict.values() if v.dtype == torch.float32]
    others += [v for v in program.constants.values() if isinstance(v, torch.Tensor)]
    floats = sum(value.nbytes for value in others)
    stored = sum(len(tensor.raw_data) for tensor in file.graph.initializer)
    assert stored <= sum(t.nbytes for t in tiled.values()) + floats + 16 * len(file.graph.node)


@pytest.mark.parametrize(
    ("dtype", "opset"),
    [(torch.float32, 17), (torch.float32, 25), (torch.float16, 18)],
)
def test_every_kind_of_layer_computes_the_same(dtype, opset, tmp_path):
    model, inputs = every_layer(dtype)
    program = with_dynamic_batch(model, inputs)
    written = to_onnx(program, tmp_path / "model.onnx", opset=opset)
    assert written.difference < TOLERANCE[dtype]
    assert_same_outputs(written.path, model, inputs, TOLERANCE[dtype])
    file = onnx.load(written.path)
    assert {entry.domain: entry.version for entry in file.opset_import} == {
        "": opset,
        functions.DOMAIN: functions.VERSION,
    }
    assert {f.name for f in file.functions} == {functions.LINEAR, functions.CONV}
    assert all(functions.is_tiled_function(function) for function in file.functions)
    read = {name: layer.weight for name, layer in layers_of(file)}
    tiled = tiled_layers(model)
    assert {name: read[name] for name in tiled} == tiled
    assert set(read) - set(tiled) == {"linear.ragged#2", "linear.whole_rows#2"}, "called twice"
    assert set(imported_tensors(written.path)) == set(tiled.values())
    assert [value.name for value in file.graph.input] == ["features", "image", "signal"]
    assert file.graph.output[0].name == "output_0"
    assert {v.type.tensor_type.shape.dim[0].dim_param for v in file.graph.input} == {"batch"}


def test_bfloat16_is_written_and_said_not_to_be_compared(tmp_path):
    from onnx.reference import ReferenceEvaluator

    torch.manual_seed(0)
    model = freeze(torch.nn.Sequential(TiledLinear(12, 8, p=4)).to(torch.bfloat16))
    x = torch.randn(2, 12).to(torch.bfloat16)
    written = to_onnx(with_dynamic_batch(model, (x,)), tmp_path / "model.onnx")
    assert written.difference is None
    assert "lacks a kernel" in written.unchecked
    given = x.view(torch.uint16).numpy().view(onnx.helper.tensor_dtype_to_np_dtype(16))
    (y,) = ReferenceEvaluator(str(written.path)).run(None, {"input": given})
    expected = model(x).float().numpy()
    np.testing.assert_allclose(y.astype(np.float32), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("form", ["inline", "dense"])
def test_other_forms_hold_no_functions_and_compute_the_same(form, tmp_path):
    model, inputs = every_layer(torch.float32)
    written = to_onnx(with_dynamic_batch(model, inputs), tmp_path / "model.onnx", form=form)
    assert_same_outputs(written.path, model, inputs, 1e-5)
    file = onnx.load(written.path)
    assert not file.functions
    assert [entry.domain for entry in file.opset_import] == [""]
    kinds = {node.op_type for node in file.graph.node}
    assert ("BitShift" in kinds) == (form == "inline")
    largest = max(math.prod(tensor.dims) for tensor in file.graph.initializer)
    assert (largest == 8 * 4 * 3 * 3) == (form == "dense")


def test_the_shipped_model_stays_below_one_bit_a_weight(example, tmp_path):
    written = to_onnx(example / "mnist_mlp.pt2", tmp_path / "model.onnx")
    weights = sum(math.prod(tiled.shape) for tiled in written.layers.values())
    tiled_bytes = sum(tiled.nbytes for tiled in written.layers.values())
    assert written.nbytes == written.path.stat().st_size < tiled_bytes + 3000
    assert 8 * written.nbytes / weights < 0.5


def test_a_program_always_gives_the_same_bytes_and_nothing_about_the_machine(tmp_path):
    files = [to_onnx(small_program(p=4), tmp_path / f"{i}.onnx").path for i in range(2)]
    first, second = (file.read_bytes() for file in files)
    assert first == second
    assert b".py" not in first, "the exporter's stack traces"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.onnx", "1.onnx"]


def test_weights_go_to_a_file_of_their_own_when_asked(tmp_path):
    torch.manual_seed(0)
    model = freeze(torch.nn.Sequential(TiledLinear(256, 256, p=4)))
    x = torch.randn(2, 256)
    program = with_dynamic_batch(model, (x,))
    written = to_onnx(program, tmp_path / "new" / "model.onnx", external_data=True)
    assert written.data_path == tmp_path / "new" / "model.onnx.data"
    assert written.data_path.stat().st_size >= 256 * 256 // 4 // 8
    assert written.nbytes == sum(f.stat().st_size for f in (written.path, written.data_path))
    assert_same_outputs(written.path, model, (x,), 1e-5)
    assert dict(layers_of(onnx.load(written.path)))["0"].weight == model[0].tiled_tensor()


def test_a_file_that_would_differ_is_not_written(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"what was there before")
    wrong = functions._LINEAR.replace(
        "Where (positive, plus, minus)", "Where (positive, minus, plus)"
    )
    monkeypatch.setattr(functions, "_LINEAR", wrong)
    functions._function.cache_clear()
    try:
        with pytest.raises(TbnError, match=r"'output' differs by .* no file was written"):
            to_onnx(small_program(p=4), path)
        assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
        assert path.read_bytes() == b"what was there before"
        assert to_onnx(small_program(p=4), path, check=False).unchecked == "not asked for"
    finally:
        functions._function.cache_clear()


@pytest.mark.parametrize(("opset", "message"), [(16, "17 or newer"), (99, "cannot write it")])
def test_an_opset_that_cannot_be_written_is_refused(opset, message, tmp_path):
    with pytest.raises(UsageError, match=f"opset {opset}: .*{message}"):
        to_onnx(small_program(p=4), tmp_path / "model.onnx", opset=opset)
    assert not list(tmp_path.iterdir())


class Unknown(torch.nn.Module):
    def forward(self, x):
        return torch.linalg.eigvalsh(x)


def test_an_operation_that_onnx_lacks_is_refused_by_name(tmp_path):
    program = torch.export.export(Unknown(), (torch.eye(3),))
    with pytest.raises(TbnError, match=r"cannot be written as ONNX: .*eigh"):
        to_onnx(program, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
