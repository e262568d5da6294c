"""The GPU benchmark: what it plans and builds without a GPU, and on one, what it measures."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tbn_tvm.bench import cuda, cuda_build, cuda_cases, cuda_search
from tbn_tvm.bench.cuda_cases import Case
from tbn_tvm.bench.cuda_journal import Journal
from tbn_tvm.bench.cuda_layer import Layer
from tbn_tvm.bench.cuda_timing import MOST_COPIES, copies_for, rotated
from tbn_tvm.cli.main import main
from tbn_tvm.schedules.cuda import KERNELS
from tbn_tvm.tiling import TiledTensor, pack_bits

ROOT = Path(__file__).resolve().parents[2]
GPU = ROOT / "benchmarks" / "gpu"
HOPPER = "sm_90a"

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
needs_emulator = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
on_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def supervise():
    """The script's module, which is no package."""
    sys.path.insert(0, str(GPU))
    try:
        import supervise

        return supervise
    finally:
        sys.path.remove(str(GPU))


# Cases -------------------------------------------------------------------------------------------


def test_every_case_has_a_kernel_on_hopper():
    for case in cuda_cases.everything():
        if case.kernel is None:
            assert cuda_build.request_of(case, HOPPER).kernel in KERNELS


def test_headlines_come_first_and_no_case_twice():
    cases = cuda_cases.everything()
    assert tuple(cases[: len(cuda_cases.HEADLINES)]) == cuda_cases.HEADLINES
    assert len({case.key for case in cases}) == len(cases)


def test_a_named_kernel_goes_before_the_rules():
    case = Case(256, 128, 4, 64, kernel="dense_simt")
    assert cuda_build.request_of(case, HOPPER).kernel == "dense_simt"


def test_a_kernel_that_does_not_cover_a_case_is_refused():
    with pytest.raises(Exception, match="dense_wgmma does not cover it on sm_80"):
        cuda_build.request_of(Case(256, 128, 4, 64, kernel="dense_wgmma"), "sm_80")


@pytest.mark.parametrize("case", [Case(24, 20, 4, 3), Case(16, 8, 4, 2, side=5)])
def test_a_layer_is_what_the_format_says(case):
    layer = Layer(case, "cpu")
    weight = layer.weight(torch.float32)
    stored = TiledTensor(pack_bits(layer.bits), layer.alpha.numpy(), tuple(weight.shape), case.p)
    np.testing.assert_array_equal(weight.numpy(), stored.expand())
    pixels = (case.side or 1) ** 2
    assert layer.operations == 2 * case.batch * pixels * weight.numel() // case.p


def test_unwritten_and_wrong_outputs_are_not_right():
    layer = Layer(Case(24, 20, 4, 3), "cpu")
    x = layer.activations()
    right = layer.expected(x).half()
    assert layer.is_right(layer.error(right, x))
    assert not layer.is_right(layer.error(layer.outputs(), x))
    right[0, 0] += 1
    assert not layer.is_right(layer.error(right, x))


# Timing ------------------------------------------------------------------------------------------


def test_copies_pass_twice_through_the_cache():
    assert copies_for(1 << 20, 50 << 20) == 100
    assert copies_for(1, 1 << 40) == MOST_COPIES
    assert copies_for(1 << 30, 50 << 20) >= 1


def test_rotated_copies_are_apart_and_aligned():
    source = torch.arange(6, dtype=torch.int32).view(1, 2, 3)
    copies = rotated(source, 3)
    assert all(torch.equal(copy, source) for copy in copies)
    assert {copy.data_ptr() - copies[0].data_ptr() for copy in copies} == {0, 512, 1024}


# The search --------------------------------------------------------------------------------------


def test_the_search_ends_at_the_best_configuration_it_can_reach(tmp_path):
    case = Case(512, 256, 4, 64)

    def seconds_of(candidates):  # more stages are faster, nothing else matters
        return {c.key: 1e-6 / c.request.configs[0]["stages"] for c in candidates}

    ranked, seconds = cuda_search.search(case, HOPPER, seconds_of, lambda: True, 4)
    best = ranked[0].request.configs[0]["stages"]
    assert seconds[ranked[0].key] == min(seconds.values()) == 1e-6 / best
    default = cuda_search.first_round(case, HOPPER, 0)[0]
    winners = list({c.request.kernel: c for c in reversed(ranked)}.values())
    cuda_search.record(default, winners, seconds, {}, "test", tmp_path)
    from tbn_tvm.schedules.records import Records

    records = Records.load(cuda_build.target_of(HOPPER), tmp_path)
    assert cuda_build.request_of(case, HOPPER, records).configs[0]["stages"] == best


# Journals and supervision ------------------------------------------------------------------------


def test_an_item_that_never_returned_is_passed_over(tmp_path):
    path = tmp_path / "stage.jsonl"
    for number in range(2):
        journal = Journal(path)
        journal.done(f"fine {number}", {"kernel": "a"})
        journal.running(f"hangs {number}", "b")
    journal = Journal(path)
    assert journal.settled("hangs 0") and journal.settled("fine 0")
    assert journal.refused("b") and not journal.refused("a")
    assert len(journal.data()) == 2


def test_a_line_cut_short_costs_nothing_else(tmp_path):
    path = tmp_path / "stage.jsonl"
    Journal(path).done("fine", {})
    path.write_text(path.read_text() + '{"key": "cut", "sta')
    assert Journal(path).settled("fine") and not Journal(path).settled("cut")


def test_a_stage_that_hangs_is_started_again_where_it_gets_on(tmp_path):
    journal = tmp_path / "journal"
    script = tmp_path / "stage.py"
    script.write_text(
        "import pathlib, time\n"
        f"path = pathlib.Path({str(journal)!r})\n"
        "count = len(path.read_text().split()) if path.exists() else 0\n"
        "path.open('a').write('x ')\n"
        "print('start', count, flush=True)\n"
        "time.sleep(0 if count == 2 else 600)\n"
    )
    told = []
    status = supervise().stage(
        lambda _left: [sys.executable, str(script)],
        dict(os.environ),
        tmp_path,
        60,
        2,
        told.append,
        journal,
    )
    assert status == "done"
    assert [line.strip() for line in told if "start" in line] == ["start 0", "start 1", "start 2"]


def test_a_stage_that_gets_nowhere_is_not_started_again(tmp_path):
    told = []
    status = supervise().stage(
        lambda _left: [sys.executable, "-c", "raise SystemExit(3)"],
        dict(os.environ),
        tmp_path,
        60,
        30,
        told.append,
        tmp_path / "journal",
    )
    assert status == "exit status 3"


# Without a GPU -----------------------------------------------------------------------------------


@on_no_gpu
def test_without_a_gpu_the_command_says_what_to_do(capsys):
    assert main(["bench", "cuda", "--shape", "64x64"]) == 1
    told = capsys.readouterr().err
    assert "no CUDA device" in told
    assert "--dry-run shows what would be measured" in told


@pytest.mark.parametrize("arguments", [["--shape", "64"], ["--p", "0"], ["--batch", "x"]])
def test_what_is_no_shape_or_count_is_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "cuda", *arguments])
    assert ended.value.code == 2
    assert "expected" in capsys.readouterr().err


@needs_nvcc
@needs_emulator
def test_a_dry_run_builds_what_would_be_measured(capsys):
    arguments = ["bench", "cuda", "--shape", "64x64", "--p", "3", "4", "--batch", "1", "--dry-run"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["rows"]  # 3 does not divide 64 outputs
    assert row["case"]["p"] == 4
    assert row["kernel"] in KERNELS
    assert row["build_seconds"] > 0


@needs_nvcc
@needs_emulator
def test_what_nvcc_refuses_is_that_kernels_failure(tmp_path):
    case = Case(64, 64, 4, 1)
    request = replace(cuda_build.request_of(case, HOPPER), arch="sm_10")
    with cuda_build.Builder(tmp_path, 1) as builder, pytest.raises(Exception, match="sm_10"):
        builder.submit(request).result()


@needs_nvcc
@needs_emulator
def test_the_script_runs_dry_from_a_plain_checkout(tmp_path):
    out = tmp_path / "out"
    done = subprocess.run(
        [
            sys.executable,
            str(GPU),
            str(out),
            "--dry-run",
            "--small",
            "--commit",
            "abc",
            "--stages",
            "info",
            "build",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((out / "results.json").read_text())
    assert found["commit"] == "abc"
    assert found["stages"]["build"]["done"] == len(cuda_cases.small())
    assert "what a run on a GPU would do" in (out / "table.txt").read_text()


@on_no_gpu
def test_the_script_ends_early_where_nothing_can_be_measured(tmp_path):
    done = subprocess.run(
        [sys.executable, str(GPU), str(tmp_path / "out")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert "no CUDA device" in done.stdout
    assert (tmp_path / "out" / "results.json").is_file()


# On a GPU ----------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_rows_are_checked_and_timed(tmp_path):
    failures = []

    def report(found):
        if isinstance(found, tuple):
            failures.append(found)

    rows = cuda.measure(cuda_cases.small(), tmp_path, report=report)
    assert not failures
    assert len(rows) == len(cuda_cases.small())
    for row in rows:
        assert row.ours.median > 0
        assert row.ratio == pytest.approx(row.rivals[row.rival].median / row.ours.median)
        assert row.errors["ours"] < 1e-2
