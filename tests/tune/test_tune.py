"""Tuning as a user sees it: it ends, is stopped or is killed, and nothing measured is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tvm

from tbn_tvm.cli.main import main
from tbn_tvm.errors import UsageError
from tbn_tvm.schedules.families import family_of
from tbn_tvm.schedules.records import Records
from tbn_tvm.schedules.rules import Workload
from tbn_tvm.tune import log, session, tune


def logged(folder="records") -> list[dict]:
    (path,) = Path(folder, "log").glob("*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def arguments(model, target, *more) -> list[str]:
    fixed = "--batch", "3", "--records", "records", "--timeout", "20"
    return ["tune", model, "--target", target, *fixed, *more]


def test_an_interrupted_run_records_what_it_found_and_goes_on(model, target, capsys, monkeypatch):
    note = session.Session.note

    def interrupt_after_three(self, *outcome):
        note(self, *outcome)
        if self.done == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(session.Session, "note", interrupt_after_three)
    assert main(arguments(model, target, "--trials", "5", "--json")) == 130
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == "tbn-tvm: interrupted; run the same command again to go on\n"
    assert (report["trials"], report["interrupted"], len(logged())) == (3, True, 3)
    assert len(report["recorded"]) == 1

    monkeypatch.setattr(session.Session, "note", note)
    assert main(arguments(model, target, "--trials", "5")) == 0
    out, err = capsys.readouterr()
    assert err == "measuring ...\nsettling ...\n"
    assert "5 configurations measured, 3 of them by earlier runs" in out
    trials = logged()
    configs = {(trial["kernel"], json.dumps(trial["config"])) for trial in trials}
    assert len(configs) == len(trials) == 5

    (recorded,) = report["recorded"]
    place = tvm.target.Target(json.loads(target))
    family = family_of(place)
    workload = Workload.from_dict(recorded["workload"], family.features)
    found = Records.load(place, "records")
    name = found.kernel(family, workload)
    config, source = found.config(family.kernels[name], workload)
    assert source == f"user {recorded['record']}"
    # The default is measured first, so it is a trial like the others, and never beats the record.
    assert {"kernel": name, "config": config}.items() <= next(
        trial.items() for trial in trials if (trial["kernel"], trial["config"]) == (name, config)
    )


def test_a_killed_run_goes_on_where_it_was(model, target, tmp_path):
    command = [sys.executable, "-m", "tbn_tvm.cli.main", *arguments(model, target)]
    # A space of more trials than the test waits for.
    run = subprocess.Popen([*command, "--trials", "60"], stderr=subprocess.DEVNULL)
    path, deadline = tmp_path / "records" / "log", time.monotonic() + 240
    while not (path.is_dir() and any(len(p.read_bytes().splitlines()) > 1 for p in path.iterdir())):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    before = logged()
    assert not list(tmp_path.glob("records/*/*.json"))
    # What a kill in the middle of a write leaves.
    (file,) = path.iterdir()
    file.write_bytes(file.read_bytes() + b'{"kernel": "panel", "vers')

    more = len(before) + 1
    report = tune(model, target, trials=more, records="records", batches=[3], timeout=20)
    assert (report.resumed, report.trials) == (len(before), more)
    assert len(report.settled) == 1
    lines = file.read_text().splitlines()
    trials = [json.loads(line) for line in lines if line.endswith("}")]
    assert trials[: len(before)] == before
    assert len({(t["kernel"], json.dumps(t["config"])) for t in trials}) == len(trials) == more
    assert len(lines) == more + 1


def test_a_log_line_cut_short_is_passed_over(tmp_path, capsys):
    path = tmp_path / "log" / "x.jsonl"
    trial = log.Trial("panel", 1, {"block": 1}, 1e-6, None, "a CPU")
    log.append(path, [trial])
    path.write_bytes(path.read_bytes() + b'{"kernel": "pa')
    log.append(path, [trial])
    path.write_bytes(path.read_bytes() + b'[]\n{"kernel": 1}\n\xff\n')
    assert log.read(path) == [trial, trial]
    assert "4 damaged lines are passed over" in capsys.readouterr().err


REFUSED = [
    (["--trials", "0"], 2, "--trials 0: expected at least 1"),
    (["--timeout", "0"], 2, "--timeout 0: expected more than 0"),
    (["--batch", "0"], 2, "--batch 0: expected at least 1"),
    (["--tracker", "localhost:9190"], 2, "--tracker and --key go together"),
    (["--tracker", "localhost", "--key", "x"], 2, "expected HOST:PORT"),
    (["--tracker", "127.0.0.1:9", "--key", "x"], 1, "no RPC tracker answers at 127.0.0.1:9"),
    (["--target", "mps2-an386"], 2, "--batch: a board is emulated here, one sample at a time"),
    (["--target", "nonsense"], 2, "unknown target 'nonsense'"),
    (["--layer", "7"], 1, "nothing of layers 7 to tune"),
    (["--records", "tuned_models.py"], 2, "is a file, expected a folder"),
]


@pytest.mark.parametrize(("more", "status", "told"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_cannot_be_tuned_is_refused(model, target, capsys, more, status, told):
    assert main(arguments(model, target, *more)) == status
    out, err = capsys.readouterr()
    assert out == "" and told in err and "Traceback" not in err
    assert not Path("records").exists() or not list(Path("records").rglob("*.json*"))


def test_missing_packages_are_named(model, target, monkeypatch, capsys):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "xgboost" else find(name, *a)
    )
    assert main(arguments(model, target)) == 1
    assert 'pip install xgboost-cpu (or "tbn-tvm[tune]")' in capsys.readouterr().err


def test_a_board_is_refused_from_python_too(model):
    with pytest.raises(UsageError, match="is a board"):
        tune(model, "mps2-an386", trials=1, records="records")
