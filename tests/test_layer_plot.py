"""The picture of a model's layers: what it shows, for few layers and for many."""

import re
from dataclasses import replace

import pytest

from tbn_tvm.errors import TbnError, UsageError
from tbn_tvm.inspect import LayerInfo
from tbn_tvm.layer_plot import plot_layers

pytest.importorskip("matplotlib")

ROW = LayerInfo(
    "body.conv",
    "tiled_conv2d",
    (8, 3, 3, 3),
    4,
    54,
    "whole rows",
    2,
    0.84,
    23,
    864,
    31,
    3456,
    864,
    3456,
)
FLOAT = replace(ROW, name="head", p=None, q=None, alignment=None, nbytes=864)


def drawn_text(path) -> str:
    """The words of an .svg: matplotlib leaves each text as a comment beside its outlines."""
    return "\n".join(re.findall(r"<!-- (.*?) -->", path.read_text()))


def test_layers_are_named_with_what_they_are(tmp_path):
    rows = [ROW, replace(ROW, name="body.fc", p=1), FLOAT]
    path = plot_layers(rows, tmp_path / "made" / "layers.svg", "a model")
    text = drawn_text(path)
    for words in ("body.conv  (p = 4)", "body.fc  (binary)", "head  (float)", "a model", "float32"):
        assert words in text
    assert [file.name for file in path.parent.iterdir()] == ["layers.svg"]


def test_a_hundred_layers_with_long_names_are_all_there(tmp_path):
    rows = [replace(ROW, name=f"stages.{'deeper.' * 8}{number}") for number in range(100)]
    text = drawn_text(plot_layers(rows, tmp_path / "layers.svg"))
    assert all(f"deeper.{number}  (p = 4)" in text for number in range(100))
    assert "stages." not in text


def test_no_layers_make_no_picture(tmp_path):
    with pytest.raises(TbnError, match="no layers"):
        plot_layers([], tmp_path / "layers.png")
    assert not list(tmp_path.iterdir())


def test_a_kind_of_file_that_cannot_be_drawn_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"ends in \.png, \.pdf, \.svg"):
        plot_layers([ROW], tmp_path / "layers.txt")
