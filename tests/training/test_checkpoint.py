"""Checkpoints: whole or refused, and only for the run that they are of."""

import pytest
import torch

from tbn_tvm.errors import TbnError, UsageError
from tbn_tvm.training.checkpoint import load_checkpoint, save_checkpoint

IDENTITY = {"epochs": 3, "skip": ["head"], "sizes": {"widths": [4, 2]}}
STATE = {"model": {"w": torch.arange(64.0)}, "rows": [{"loss": 0.5}], "best": None}


@pytest.fixture
def path(tmp_path):
    """A written checkpoint."""
    place = tmp_path / "model.pt2.checkpoint"
    save_checkpoint(place, IDENTITY, STATE)
    return place


def equal(state: dict) -> bool:
    """Whether a state is :data:`STATE`."""
    rest = {k: v for k, v in state.items() if k != "model"}
    expected = {k: v for k, v in STATE.items() if k != "model"}
    return torch.equal(state["model"]["w"], STATE["model"]["w"]) and rest == expected


def test_what_is_written_is_read(path):
    assert equal(load_checkpoint(path, IDENTITY))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_newer_one_takes_the_place_of_an_older(path):
    save_checkpoint(path, IDENTITY, {**STATE, "best": 7})
    assert load_checkpoint(path, IDENTITY)["best"] == 7


@pytest.mark.parametrize("start", range(0, 40, 4))
def test_damage_anywhere_is_refused_or_harmless(path, start):
    whole = path.read_bytes()
    for offset in range(start, len(whole), 40):
        damaged = bytearray(whole)
        damaged[offset] ^= 0x40
        path.write_bytes(damaged)
        try:
            state = load_checkpoint(path, IDENTITY)
        except TbnError as error:
            assert "remove it to start again" in str(error)
        else:
            assert equal(state)


@pytest.mark.parametrize("share", [0, 0.3, 0.9, 0.999])
def test_a_truncated_one_is_refused(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(TbnError, match="not a checkpoint of this recipe, or damaged"):
        load_checkpoint(path, IDENTITY)


@pytest.mark.parametrize(
    ("change", "told"),
    [({"epochs": 4}, "epochs"), ({"epochs": 4, "sizes": {}}, "epochs, sizes"), ({"p": 2}, "p")],
)
def test_another_runs_is_refused_with_what_differs(path, change, told):
    with pytest.raises(UsageError, match=rf"other settings \({told}\)"):
        load_checkpoint(path, {**IDENTITY, **change})


def test_a_file_of_something_else_is_refused(path):
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(TbnError, match=r"damaged \(KeyError\)"):
        load_checkpoint(path, IDENTITY)


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(TbnError, match=r"x: the checkpoint cannot be written: \S"):
        save_checkpoint(tmp_path / "none" / "x", IDENTITY, STATE)
