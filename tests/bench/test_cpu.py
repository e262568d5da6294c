"""The CPU benchmark measures what it says, after comparing outputs."""

import json
import sys

import pytest

from tbn_tvm.bench import cpu
from tbn_tvm.cli.main import main


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch):
    monkeypatch.setattr(cpu, "_SECONDS", 0.01)


def test_a_row_has_times_and_their_ratios(capsys):
    layers = ["--shape", "64x48", "--conv", "16x16x3x6g2"]
    arguments = ["--p", "4", "5", "--batch", "2", "--dtype", "float32", "--json"]
    assert main(["bench", "cpu", *layers, *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    dense, conv = report["rows"]  # 5 divides neither 64 nor 16 outputs
    assert (dense["layer"], dense["m"], dense["n"]) == ("64x48", 64, 48)
    assert (conv["layer"], conv["m"], conv["n"]) == ("conv 16x16x3x3 on 6^2 in 2 groups", 16, 72)
    for row in (dense, conv):
        assert (row["p"], row["batch"], row["dtype"]) == (4, 2, "float32")
        assert row["ours_us"] > 0
        assert row["over_float32"] == pytest.approx(row["float32_us"] / row["ours_us"])
        assert row["over_bfloat16"] == pytest.approx(row["bfloat16_us"] / row["ours_us"])
    assert report["machine"]["threads"] >= 1
    assert report["machine"]["cpu"]
    assert report["versions"]["tvm"]


def test_float16_rows_and_a_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.png"
    arguments = ["--shape", "32x48", "--p", "2", "--batch", "1", "3", "--dtype", "float16"]
    assert main(["bench", "cpu", *arguments, "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "float16" in capsys.readouterr().out


def test_a_plot_without_matplotlib_is_refused_before_measuring(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", "cpu", "--plot", str(tmp_path / "plot.png")]) == 1
    assert "pip install 'tbn-tvm[plot]'" in capsys.readouterr().err


@pytest.mark.parametrize("shape", ["4096", "4096x", "0x8", "axb"])
def test_a_shape_that_is_none_is_a_usage_error(shape, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "cpu", "--shape", shape])
    assert ended.value.code == 2
    assert "expected MxN" in capsys.readouterr().err


@pytest.mark.parametrize("shape", ["64x64x3", "64x64x2x9", "9x9x3x9g2", "64x64x3x9h"])
def test_a_convolution_that_is_none_is_a_usage_error(shape, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "cpu", "--conv", shape])
    assert ended.value.code == 2
    assert shape in capsys.readouterr().err
