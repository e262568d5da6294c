"""Windows of a CSV file, and what is refused; ETTh1's published split."""

import numpy as np
import pytest
import torch

from tbn_tvm.errors import TbnError, UsageError
from tbn_tvm.training.data import load
from tbn_tvm.training.data.series import read_csv


def write_csv(path, values: np.ndarray, header: str = "date,a,b") -> None:
    lines = [f"2020-01-01 {i:02d}:00,{','.join(map(str, row))}" for i, row in enumerate(values)]
    path.write_text("\n".join([header, *lines]) + "\n")


@pytest.fixture
def values():
    """Fifty rows of two variables on different scales."""
    return np.random.default_rng(0).normal((5, -100), (2, 30), (50, 2)).round(4)


@pytest.fixture
def folder(tmp_path, values):
    write_csv(tmp_path / "loads.csv", values)
    return tmp_path


def test_windows_slide_by_one_row_and_are_standardised_by_the_training_rows(folder, values):
    data = load("csv", folder, length=4, horizon=2, split=(0.6, 0.2, 0.2))
    train = values[:30]
    expected = ((values - train.mean(0)) / train.std(0)).astype(np.float32)
    assert len(data.train) == 30 - 4 - 2 + 1
    (x,), y = next(data.train.batches([torch.tensor([3, 0])]))
    np.testing.assert_array_equal(x[0].numpy(), expected[3:7])
    np.testing.assert_array_equal(y[0].numpy(), expected[7:9])
    np.testing.assert_array_equal(x[1].numpy(), expected[:4])


def test_the_first_forecast_row_of_a_part_is_its_first_row(folder, values):
    data = load("csv", folder, length=4, horizon=2, split=[30, 10, 5])
    expected = (values - values[:30].mean(0)) / values[:30].std(0)
    for split, begin, rows in ((data.validation, 30, 10), (data.test, 40, 5)):
        assert len(split) == rows - 2 + 1
        np.testing.assert_allclose(split.targets[0].numpy(), expected[begin : begin + 2], rtol=1e-6)
        last = split.targets[-1].numpy()
        np.testing.assert_allclose(last, expected[begin + rows - 2 : begin + rows], rtol=1e-6)


def test_a_variable_that_never_moves_is_zero(tmp_path):
    write_csv(tmp_path / "still.csv", np.stack([np.full(40, 7.0), np.arange(40.0)], 1))
    data = load("csv", tmp_path, length=3, horizon=1)
    assert (data.train.inputs[0][..., 0] == 0).all()
    assert torch.isfinite(data.test.targets).all()


def test_a_file_without_dates_is_read_whole(tmp_path):
    (tmp_path / "plain.csv").write_text("x,y\n1,2\n3,4\n")
    np.testing.assert_array_equal(read_csv(tmp_path / "plain.csv"), [[1, 2], [3, 4]])


def test_dates_may_stand_anywhere_and_lines_end_as_other_systems_end_them(tmp_path):
    lines = ["\ufeffa,Date,b", *(f"{n},2020-01-{n + 1:02},{n * n}" for n in range(20)), "", ""]
    (tmp_path / "file.csv").write_bytes("\r\n".join(lines).encode())
    expected = [[n, n * n] for n in range(20)]
    assert read_csv(tmp_path / "file.csv").tolist() == expected


def test_etth1_has_the_published_split(tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "ett").mkdir()
    header = "date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT"
    write_csv(tmp_path / "ett" / "ETTh1.csv", random.normal(size=(14500, 7)).round(3), header)
    data = load("etth1", tmp_path)
    counts = [len(split) for split in (data.train, data.validation, data.test)]
    assert counts == [8640 - 191, 2880 - 95, 2880 - 95]
    assert data.train.inputs[0].shape[1:] == data.train.targets.shape[1:] == (96, 7)
    training_rows = torch.cat([data.train.inputs[0][:, 0], data.train.inputs[0][-1, 1:]])
    last = data.train.targets[-1]
    rows = torch.cat([training_rows, last]).double()
    assert len(rows) == 8640
    torch.testing.assert_close(rows.mean(0), torch.zeros(7).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(rows.std(0, correction=0), torch.ones(7).double())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        ("date,a\n", "expected a header with variables, and rows of numbers"),
        ("date\n2020\n", "expected a header with variables"),
        ("date,a,b\n1,2,3\n1,2\n", "row 2 behind the header has 2 fields, the header 3"),
        ("date,a\n1,2\n1,x\n", "row 2 behind the header: '1,x' is not all finite numbers"),
        ("date,a\n1,nan\n", "row 1 behind the header: .* is not all finite"),
        ("date,a\n1,\n", "row 1 behind the header"),
        ("date;a;b\n1;2;3\n", "separated by semicolons; expected commas"),
        ("date\ta\n1\t2\n", "separated by tabulators; expected commas"),
        ("1,2\n3,4\n", "the first row is numbers; expected a header"),
        (",a\n0,2\n", "column 1 has no name in the header"),
    ],
)
def test_malformed_files_are_refused(tmp_path, text, told):
    (tmp_path / "file.csv").write_text(text)
    with pytest.raises(TbnError, match=told):
        load("csv", tmp_path)


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"file": "none.csv"}, TbnError, "none.csv: cannot be read as CSV"),
        ({"split": (60, 10, 10)}, TbnError, "has 50 rows; the split .60, 10, 10. asks for more"),
        ({"split": (0.9, 0.2, 0.1)}, UsageError, "add up to at most 1"),
        ({"split": (0.5, 0.5)}, UsageError, "expected three numbers"),
        ({"length": 0}, UsageError, "length 0: expected a whole number of at least 1"),
        ({"length": 30, "horizon": 10}, TbnError, "the training part has 35 rows.*at least 40"),
    ],
)
def test_options_that_cannot_be_are_refused(folder, options, error, told):
    with pytest.raises(error, match=told):
        load("csv", folder, **{"length": 2, "horizon": 2, **options})


def test_a_folder_with_several_files_asks_for_a_name(folder):
    (folder / "other.csv").write_text("a\n1\n")
    with pytest.raises(TbnError, match="holds 2 CSV files; name one"):
        load("csv", folder)


def test_a_folder_without_etth1_is_refused(tmp_path):
    with pytest.raises(TbnError, match=r"holds neither ETTh1\.csv nor ett/ETTh1\.csv"):
        load("etth1", tmp_path)
