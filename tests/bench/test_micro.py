"""The bare-metal benchmark: rows are what the emulator and the ELF file say."""

import json

import pytest

from tbn_tvm.bench import micro
from tbn_tvm.cli.main import main


@pytest.mark.emulator
def test_a_row_has_instructions_and_sizes_that_meet_the_layers_targets():
    cases = [micro.Case(micro.LAYER, micro.M4, kind) for kind in ("float32", "int8")]
    floats, integers = micro.measure(cases)
    assert floats.largest_error < 1e-5
    assert integers.largest_error == 0
    # Counted instructions are the same on every host.
    assert 0 < floats.instructions <= 45_000
    assert 0 < integers.instructions <= 40_000
    assert floats.weights < floats.bare_flash < floats.flash
    assert "CMSIS-NN int8" in floats.to_dict()["alternatives"]
    json.dumps([floats.to_dict(), integers.to_dict()])


def test_a_board_outside_the_selection_is_refused(capsys):
    assert main(["bench", "micro", "--board", "nothing"]) == 2
    assert "--board nothing: expected some of" in capsys.readouterr().err
