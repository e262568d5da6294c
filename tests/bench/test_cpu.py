"""The CPU benchmark measures what it says, after comparing outputs."""

import json

import pytest

from tbn_tvm.cli.main import main


def test_a_row_has_times_and_their_ratios(capsys):
    arguments = ["bench", "cpu", "--shape", "64x48", "--p", "4", "5", "--batch", "2", "--json"]
    assert main(arguments) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]  # 5 does not divide 64 outputs
    assert (row["m"], row["n"], row["p"], row["batch"]) == (64, 48, 4, 2)
    assert row["ours_us"] > 0
    assert row["over_float32"] == pytest.approx(row["float32_us"] / row["ours_us"])
    assert row["over_bfloat16"] == pytest.approx(row["bfloat16_us"] / row["ours_us"])


@pytest.mark.parametrize("shape", ["4096", "4096x", "0x8", "axb"])
def test_a_shape_that_is_none_is_a_usage_error(shape, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "cpu", "--shape", shape])
    assert ended.value.code == 2
    assert "expected MxN" in capsys.readouterr().err
