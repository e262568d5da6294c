"""What a ``.pt2`` file may hold: nothing in it is run, whatever it says."""

from __future__ import annotations

import io
import json
import os
import zipfile

import pytest
import torch

from tbn_tvm.errors import FormatError, TbnError
from tbn_tvm.frontend.pt2 import checked_copy, load_program
from tbn_tvm.loading import load_model
from tbn_tvm.nn import TiledLinear, freeze


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(freeze(TiledLinear(16, 8, p=4)), torch.nn.GELU(approximate="tanh"))


@pytest.fixture(scope="module")
def saved(network):
    buffer = io.BytesIO()
    batch = torch.export.Dim("batch")
    program = torch.export.export(network, (torch.randn(2, 16),), dynamic_shapes=({0: batch},))
    torch.export.save(program, buffer)
    return buffer.getvalue()


def changed(saved: bytes, change, method=zipfile.ZIP_STORED) -> bytes:
    """The archive with each member's bytes replaced by what a function makes of name and bytes."""
    copy = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved)) as archive, zipfile.ZipFile(copy, "w", method) as out:
        for name in archive.namelist():
            out.writestr(name, change(name, archive.read(name)))
    return copy.getvalue()


def with_json(saved: bytes, ending: str, change) -> bytes:
    def replace(name, data):
        if not name.endswith(ending):
            return data
        value = json.loads(data)
        change(value)
        return json.dumps(value).encode()

    return changed(saved, replace)


def test_what_pytorch_saves_is_loaded(tmp_path, saved, network):
    path = tmp_path / "model.pt2"
    path.write_bytes(saved)
    x = torch.randn(5, 16)
    torch.testing.assert_close(load_program(path).module()(x), network(x))


class _Runs:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("member", ["sample_inputs/model.pt", "weights_config.json"])
def test_pickles_that_hold_more_than_tensors_are_not_loaded(tmp_path, monkeypatch, saved, member):
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save((_Runs(),), buffer)

    def replace(name, data):
        if name.endswith("weights_config.json") and member in name:
            value = json.loads(data)
            value["config"]["0.tile"]["use_pickle"] = True
            return json.dumps(value).encode()
        if member in name or (member == "weights_config.json" and "weights/weight_" in name):
            return buffer.getvalue()
        return data

    (tmp_path / "hostile.pt2").write_bytes(changed(saved, replace))
    with pytest.raises(TbnError, match="could run code when loaded"):
        load_model(tmp_path / "hostile.pt2")
    assert not (tmp_path / "ran").exists()


EXPRESSIONS = [
    "__import__('os').mkdir('ran')",
    "(lambda: 1)()",
    "Symbol('s0').func",
    "[1][0]",
    "9**9**9**9",
    "Pow(Integer(9), Pow(Integer(9), Integer(99)))",
    "factorial(10000000)",
    "Symbol('s0 + 1')",
    "(" * 500 + "1" + ")" * 500,
    "Integer(" * 300 + "1" + ")" * 300,
]


@pytest.mark.parametrize("text", EXPRESSIONS, ids=range(len(EXPRESSIONS)))
def test_sizes_are_arithmetic_and_no_python(saved, text):
    def hostile(program):
        values = program["graph_module"]["graph"]["tensor_values"]
        sizes = [s for value in values.values() for s in value["sizes"] if "as_expr" in s]
        sizes[0]["as_expr"]["expr_str"] = text

    with pytest.raises(FormatError, match="is no arithmetic on symbols"):
        checked_copy(with_json(saved, "models/model.json", hostile))


@pytest.mark.parametrize("target", ["torch.load", "torch.os.system", "math.__doc__", "#x:y", "x"])
def test_calls_are_operators_on_tensors(saved, target):
    def hostile(program):
        program["graph_module"]["graph"]["nodes"][0]["target"] = target

    with pytest.raises(FormatError, match="which is no operator on tensors"):
        checked_copy(with_json(saved, "models/model.json", hostile))


def test_names_that_would_be_code_are_refused(saved):
    def hostile(program):
        program["graph_module"]["graph"]["inputs"][-1]["as_tensor"]["name"] = "x=print('ran')"

    with pytest.raises(FormatError, match="is none that PyTorch gives"):
        checked_copy(with_json(saved, "models/model.json", hostile))


def test_guards_are_not_compiled(saved):
    def hostile(program):
        program["guards_code"] = ["__import__('os').mkdir('ran')"]

    copy = checked_copy(with_json(saved, "models/model.json", hostile))
    with zipfile.ZipFile(copy) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("models/model.json")]
        assert json.loads(archive.read(name))["guards_code"] == []


def test_containers_that_would_be_imported_are_refused(saved):
    def hostile(program):
        call = program["graph_module"]["module_call_graph"][0]["signature"]
        call["in_spec"] = call["in_spec"].replace("builtins.dict", "collections.defaultdict")

    with pytest.raises(FormatError, match="expected tuples, lists and dicts"):
        checked_copy(with_json(saved, "models/model.json", hostile))


def test_views_larger_than_what_is_stored_are_refused(saved):
    def hostile(config):
        meta = config["config"]["0.alpha"]["tensor_meta"]
        meta["sizes"] = [{"as_int": 2**20}, {"as_int": 2**20}]
        meta["strides"] = [{"as_int": 0}, {"as_int": 0}]

    with pytest.raises(FormatError, match="elements, and 16 bytes are stored"):
        checked_copy(with_json(saved, "weights_config.json", hostile))


def test_archives_that_unpack_to_more_than_their_size_are_refused(saved):
    bomb = changed(saved, lambda _name, data: data + bytes(10**6), zipfile.ZIP_DEFLATED)
    with pytest.raises(FormatError, match="larger than the file itself"):
        checked_copy(bomb)


def test_libraries_in_archives_are_refused(saved):
    copy = io.BytesIO(saved)
    with zipfile.ZipFile(copy, "a") as archive:
        folder = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{folder}/data/aotinductor/model/code.so", b"\x7fELF")
    with pytest.raises(FormatError, match=r"it holds 'data/aotinductor/model/code.so'"):
        checked_copy(copy.getvalue())
