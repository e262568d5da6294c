"""Records for boards: kernels are emulated, the best are recorded, and compile takes them."""

import json

import numpy as np
import pytest
import torch

import tbn_tvm
from tbn_tvm.cli.main import main
from tbn_tvm.compiler import import_model
from tbn_tvm.errors import UsageError
from tbn_tvm.micro import Session
from tbn_tvm.nn import TiledLinear, freeze
from tbn_tvm.schedules.records import Records
from tbn_tvm.targets import load_board
from tbn_tvm.tune.boards import tune_board

BOARD = "mps2-an386"


class Layers(torch.nn.Module):
    """A layer of many unique rows, and one of three, where two kernels come close."""

    def __init__(self):
        super().__init__()
        self.first = TiledLinear(64, 32, p=2)
        self.second = TiledLinear(32, 6, p=2)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def make():
    torch.manual_seed(0)
    return torch.export.export(freeze(Layers()), (torch.randn(1, 64),))


@pytest.fixture
def model(tmp_path, monkeypatch):
    """MODEL on the command line; its folder is the working directory."""
    torch.export.save(make(), tmp_path / "net.pt2")
    monkeypatch.chdir(tmp_path)
    return "net.pt2"


def compiled_kernels(capsys, *flags) -> list[dict]:
    assert main(["compile", "net.pt2", "--target", BOARD, "-o", "out", "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)["kernels"]


@pytest.mark.emulator
def test_tune_emulates_every_kernel_and_compile_takes_the_records(model, capsys):
    assert main(["tune", model, "--target", BOARD, "--records", "records", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["target"]["arch"] == "cortex-m4f"
    rows = {tuple(row["layers"]): row for row in report["recorded"]}
    assert set(rows) == {(0,), (1,)}
    for row in rows.values():
        counts = row["instructions"]
        assert set(counts) == {"lookup_dense", "sign_dense"}
        assert row["kernel"] == min(counts, key=counts.get)
    # Sixteen rows that read a table of four columns each need far fewer additions.
    assert 2 * rows[0,]["instructions"]["lookup_dense"] < rows[0,]["instructions"]["sign_dense"]
    by_rules = compiled_kernels(capsys)
    assert [kernel["sources"] for kernel in by_rules] == [["rules"], ["rules"]]
    recorded = compiled_kernels(capsys, "--records", "records")
    for kernel, layer in zip(recorded, (0, 1), strict=True):
        assert kernel["kernel"] == rows[layer,]["kernel"]
        assert kernel["sources"] == [f"user {rows[layer,]['record']}"]


@pytest.mark.emulator
def test_a_record_overrides_the_rule_on_its_core_and_no_other(tmp_path):
    """Of a record altered to prefer the slower kernel, by whoever measured otherwise."""
    model, board = import_model(make(), name="net"), load_board(BOARD)
    report = tune_board(model, board, records=tmp_path / "records", layers=[0])
    (row,) = report.measured
    path = tmp_path / "records" / row.path.relative_to(report.records)
    swapped = {name: 1e6 / count for name, count in row.instructions.items()}
    content = json.loads(path.read_text())
    content.pop("content_hash")
    for name, entry in content["kernels"].items():
        entry["instructions"] = swapped[name]
    from tbn_tvm.schedules.records.identity import digest

    path.write_text(json.dumps({**content, "content_hash": digest(content)}))
    x = np.random.default_rng(0).standard_normal((1, 64)).astype("float32")
    chosen, outputs = [], []
    for target, records in ((BOARD, None), (BOARD, path.parent.parent), ("mps2-an385", path)):
        folder = path.parent.parent if records is not None else None
        project = tbn_tvm.compile(model, target, records=folder)
        chosen.append([kernel["kernel"] for kernel in project.kernels])
        if target == BOARD:
            with Session(project.save(tmp_path / "net")) as session:
                outputs.append(session.run(x))
    ruled, overridden, elsewhere = chosen
    assert (ruled[0], overridden[0]) == ("lookup_dense", "sign_dense")
    assert ruled[1] == overridden[1]
    assert elsewhere == ruled
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)


def test_flags_of_other_targets_are_refused(model, capsys):
    for flags in (["--batch", "2"], ["--tracker", "host:1", "--key", "k"]):
        assert main(["tune", model, "--target", BOARD, "--records", "records", *flags]) == 2
        assert "a board is emulated here" in capsys.readouterr().err
    (model_file := "records")
    open(model_file, "w").close()
    with pytest.raises(UsageError, match="is a file"):
        tune_board(import_model(make()), load_board(BOARD), records="records")


def test_records_of_boards_are_kept_by_core_and_features():
    from tbn_tvm.schedules.families import bare_metal
    from tbn_tvm.schedules.records.identity import folder_name

    small = Records.load(bare_metal(["dsp", "fpu"], 4096, "Cortex-M4F")).identity
    large = Records.load(bare_metal(["dsp", "fpu"], 65536, "Cortex-M4F")).identity
    assert small == large
    assert small != Records.load(bare_metal(["dsp"], 4096, "Cortex-M4")).identity
    assert folder_name(small) == "c-cortex-m4f"
