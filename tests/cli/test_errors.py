"""Bad input through the command line: one clear message, the right status, nothing written."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tbn_tvm import targets
from tbn_tvm.cli.main import main

FAILURE, USAGE = 1, 2
BOARD = "mps2-an386"


def assert_one_message(err: str, told: str) -> None:
    """Progress, then one message that holds the words; no traces of the program's insides."""
    progress, mark, message = err.partition("tbn-tvm: error: ")
    assert mark and mark not in message
    assert re.fullmatch(r"(\w+ \.\.\.\n)*", progress)
    assert re.search(told, message), message
    assert "Traceback" not in err
    assert "internal error" not in err


def refused(capfd, command: str, status: int, told: str) -> str:
    """Run a command that must fail; its message."""
    capfd.readouterr()
    assert main(shlex.split(command)) == status
    out, err = capfd.readouterr()
    assert out == ""
    assert_one_message(err, told)
    return err


MODELS = [
    (
        "none.pt2",
        FAILURE,
        "none.pt2: no such file; expected a .pt2 or .onnx file, package.module:factory or models:",
    ),
    ("text.pt2", FAILURE, r"text.pt2: not a program saved by torch\.export\.save"),
    ("empty.pt2", FAILURE, r"empty.pt2: not a program saved by torch\.export\.save"),
    ("zip.pt2", FAILURE, r"zip.pt2: not a program saved by torch\.export\.save"),
    ("weights.pt2", FAILURE, r"weights.pt2: not a program saved by torch\.export\.save"),
    ("truncated.pt2", FAILURE, r"truncated.pt2: not a program .* or damaged"),
    ("tiny.tbn", FAILURE, "tiny.tbn: is an artifact, compiled already; expected the model that"),
    ("nan.pt2", FAILURE, "layer '0': .*finite"),
    ("full", FAILURE, r"full: is a folder; expected a \.pt2 or \.onnx file"),
    ("no_such_module:make", FAILURE, "No module named 'no_such_module'; run from the folder"),
    ("broken:make", FAILURE, "No module named 'nothing_of_this_name'"),
    ("wrong_syntax:make", FAILURE, "wrong_syntax:make: importing it failed"),
    ("not-a-module:make", USAGE, r"not of the form package\.module:factory"),
    ("factories:", USAGE, r"not of the form package\.module:factory"),
    ("factories:none", FAILURE, "module factories has no callable 'none'"),
    ("factories:number", FAILURE, "module factories has no callable 'number'"),
    ("factories:raises", FAILURE, "the factory failed: no weights here"),
    ("factories:needs_an_argument", FAILURE, "the factory failed: .*missing 1 required"),
    ("factories:nonsense", FAILURE, "the factory returned dict: expected an ExportedProgram"),
    ("factories:branching", FAILURE, r"torch\.export refused it"),
    ("factories:fourier", FAILURE, "the model cannot be imported into TVM"),
]


@pytest.mark.parametrize(("model", "status", "told"), MODELS, ids=[m[0] for m in MODELS])
def test_what_is_no_model_is_refused(cwd, capfd, model, status, told):
    refused(capfd, f"compile {model} -o out", status, told)


@pytest.mark.parametrize("model", ["none.pt2", "text.pt2", "truncated.tbn", "factories:raises"])
def test_what_is_no_model_cannot_be_inspected(cwd, capfd, model):
    refused(capfd, f"inspect {model}", FAILURE, model)


TARGETS = [
    ("toaster", "unknown target 'toaster': expected llvm, host, .*mps2-an386"),
    ("''", "unknown target ''"),
    ("[]", "unknown target"),
    ("'{\"kind\": '", "is not valid JSON"),
    ("cuda=hopper", "CUDA architecture 'hopper': expected sm_ and a number"),
    ("cuda=", "CUDA architecture '': expected sm_ and a number"),
    ('\'{"kind": "cuda", "arch": "90"}\'', "CUDA architecture '90'"),
    ('\'{"kind": "cuda", "arch": "sm_90", "colour": "red"}\'', "TVM refuses the target"),
    ('\'{"kind": "toaster"}\'', "target kind 'toaster'"),
    ("'{}'", "target kind None"),
    ('\'{"kind": "llvm", "colour": "red"}\'', "TVM refuses the target"),
    ('\'{"kind": "llvm", "mcpu": "z80"}\'', "LLVM does not know mcpu 'z80'"),
    ('\'{"kind": "llvm", "mcpu": 80}\'', "TVM refuses the target"),
]


@pytest.mark.parametrize(("target", "told"), TARGETS, ids=[t[0] for t in TARGETS])
def test_an_unknown_target_is_refused_before_the_model_is_read(cwd, capfd, target, told):
    refused(capfd, f"compile none.pt2 --target {target} -o out", USAGE, told)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--batch 0", "--batch 0: expected at least 1"),
        ("--max-batch -3", "--max-batch -3: expected at least 1"),
        ("--batch 2 --max-batch 4", "give one"),
        (f"--batch 2 --target {BOARD}", "--batch: a board runs one sample after the other"),
        ("--cuda-graph", "--cuda-graph: only a cuda target has CUDA graphs"),
        (f"--cuda-graph --target {BOARD}", "--cuda-graph: only a cuda target"),
        ("--cuda-graph --target cuda --max-batch 4", "--cuda-graph needs fixed shapes"),
        ("--emit cuda", "--emit cuda: only a cuda target has CUDA source"),
        ("--emit cuda --target cuda -o x.cu", "-o x.cu: --emit cuda writes the source there"),
    ],
)
def test_options_that_do_not_go_together_are_refused_at_once(cwd, capfd, options, told):
    refused(capfd, f"compile none.pt2 {options}", USAGE, told)


def test_an_unknown_triple_is_refused(cwd, capsys):  # LLVM itself writes to stderr too
    target = '{"kind": "llvm", "mtriple": "abacus"}'
    assert main(["compile", "tiny.pt2", "--target", target, "-o", "out"]) == USAGE
    assert_one_message(capsys.readouterr().err, "LLVM does not know .* 'abacus'")


@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        ("-o full", USAGE, "full: is a folder; an artifact is a file"),
        ("-o text.pt2/out", FAILURE, "text.pt2"),
        ("-o out --dump-ir text.pt2", USAGE, "text.pt2: is a file, expected a folder"),
        (f"--target {BOARD} -o full", USAGE, "full: is not empty and holds no tbn-tvm project"),
        (f"--target {BOARD} -o foreign", USAGE, "foreign: is not empty and holds no tbn-tvm"),
        (f"--target {BOARD} -o text.pt2", USAGE, "text.pt2: is a file; a project is a folder"),
    ],
)
def test_an_output_that_would_destroy_something_is_refused(cwd, capfd, options, status, told):
    refused(capfd, f"compile tiny.pt2 {options}", status, told)


def test_a_model_too_large_for_the_board_is_refused_with_its_sizes(cwd, capfd, monkeypatch):
    load = targets.load_board
    monkeypatch.setattr(targets, "load_board", lambda name: replace(load(name), flash_bytes=40))
    message = refused(
        capfd, f"compile tiny.pt2 --target {BOARD} -o out", FAILURE, f"does not fit {BOARD}"
    )
    assert "bytes of weights, 40 available" in message
    assert re.search(r"  0: \d+ bytes of weights", message)


# -- running ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("artifact", "told"),
    [
        ("none.tbn", "none.tbn: no such file"),
        ("full", "full: is a folder"),
        ("text.pt2", "text.pt2: not an artifact"),
        ("tiny.pt2", "tiny.pt2: a zip archive, but not a tbn-tvm artifact"),
        ("truncated.tbn", "truncated.tbn: not an artifact, or truncated or damaged"),
        ("altered.tbn", "altered.tbn: its part library.so is damaged or was altered"),
        ("newer.tbn", "newer.tbn: schema 2 is newer than 1"),
    ],
)
def test_what_is_no_artifact_is_not_run(cwd, capfd, artifact, told):
    refused(capfd, f"run {artifact} --input x.npy --output out.npz", FAILURE, told)


INPUTS = [
    ("none.npz", "none.npz: no such file; expected .npz or .npy with input: float32"),
    ("full", "full: no such file"),
    ("text.npz", "text.npz: not a NumPy file, or damaged"),
    ("empty.npz", "empty.npz: not a NumPy file, or damaged"),
    ("objects.npy", "objects.npy: not a NumPy file, or damaged"),
    ("damaged.npz", "damaged.npz: not a NumPy file, or damaged"),
    ("truncated.npz", "truncated.npz: not a NumPy file, or damaged"),
    ("truncated.npy", "truncated.npy: not a NumPy file, or damaged"),
    ("zip.pt2", "zip.pt2: not a NumPy file"),
    ("wide.npy", r"input 'input' has shape \(2, 13\): expected \(batch, 12\)"),
    ("none.npy", r"input 'input' has shape \(0, 12\): expected \(batch, 12\)"),
    ("double.npy", "input 'input' has dtype float64: expected float32"),
    ("other_name.npz", "input 'pixels' is unknown or given twice: expected input: float32"),
    ("labels_only.npz", "input 'input' is missing: expected input: float32"),
]


@pytest.mark.parametrize(("file", "told"), INPUTS, ids=[i[0] for i in INPUTS])
def test_a_wrong_input_is_refused(cwd, capfd, file, told):
    refused(capfd, f"run tiny.tbn --input {file} --output out.npz", FAILURE, told)


@pytest.mark.parametrize("output", ["full", "text.pt2/out.npz"])
def test_an_output_that_cannot_be_written_is_refused(cwd, capfd, output):
    refused(capfd, f"run tiny.tbn --input x.npy --output {output}", FAILURE, output.split("/")[0])


def test_every_damage_to_an_input_file_is_told_as_such(cwd, capfd, tmp_path):
    whole = Path("whole.npz").read_bytes()
    path, statuses = tmp_path / "damaged.npz", []
    for offset in range(0, len(whole), 23):
        damaged = bytearray(whole)
        damaged[offset] ^= 0x55
        path.write_bytes(damaged)
        statuses.append(main(["run", "tiny.tbn", "--input", str(path), "--json"]))
        err = capfd.readouterr().err
        assert "internal error" not in err
        assert err.count("tbn-tvm: error: ") == (statuses[-1] != 0)
    assert set(statuses) <= {0, FAILURE}
    assert statuses.count(FAILURE) > len(statuses) // 2


# -- bare metal ------------------------------------------------------------------------------

PROJECTS = [
    ("none", "none: no such folder; make one with tbn-tvm compile MODEL --target BOARD"),
    ("tiny.pt2", "tiny.pt2: no such folder"),
    ("full", "full: not a tbn-tvm project"),
    ("foreign", "foreign: not a tbn-tvm project"),
    ("no_metadata", "no_metadata: not a tbn-tvm project"),
    ("newer_project", "newer_project: schema 2 is newer than 1"),
    ("altered_metadata", "altered_metadata: its metadata.json was altered; compile the model"),
    ("less_metadata", "less_metadata: its metadata.json was altered; compile the model"),
    ("altered_code", "altered_code: its file tiny.c was altered; compile the model again"),
    ("missing_code", "missing_code: its file device/tbn_server.c is missing; compile the model"),
]


@pytest.mark.parametrize(("project", "told"), PROJECTS, ids=[p[0] for p in PROJECTS])
@pytest.mark.parametrize("action", ["build {}", "run {} --input x.npy --output out.npz"])
def test_what_is_no_project_is_neither_built_nor_run(cwd, capfd, action, project, told):
    refused(capfd, f"micro {action.format(project)}", FAILURE, told)


def test_an_input_is_checked_before_anything_is_built(cwd, capfd):
    refused(capfd, "micro run project --input wide.npy", FAILURE, r"has shape \(2, 13\)")


@pytest.mark.parametrize("action", ["build project", "run project --input x.npy --output out.npz"])
def test_a_missing_cross_compiler_is_told_with_the_command_that_gets_it(
    cwd, capfd, monkeypatch, action
):
    monkeypatch.setenv("PATH", "")
    told = "arm-none-eabi-gcc is not on PATH; on Debian: apt-get install gcc-arm-none-eabi"
    refused(capfd, f"micro {action}", FAILURE, told)


@pytest.mark.emulator
def test_a_missing_emulator_is_told_with_the_command_that_gets_it(
    prepared, tmp_path, capfd, monkeypatch
):
    shutil.copytree(prepared / "project", tmp_path / "project")
    (tmp_path / "bin").mkdir()
    for tool in ("arm-none-eabi-gcc", "arm-none-eabi-objdump"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    command = f"micro run {tmp_path}/project --input {prepared}/x.npy --output {tmp_path}/out.npz"
    told = "qemu-system-arm is not on PATH; on Debian: apt-get install qemu-system-arm"
    refused(capfd, command, FAILURE, told)
    assert not (tmp_path / "out.npz").exists()


# -- training --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        ("--data none -o out.pt2", FAILURE, "none: no such folder; expected the four MNIST"),
        ("--data full -o out.pt2", FAILURE, "full: holds neither train-images-idx3-ubyte nor"),
        ("--data full -o out.onnx", USAGE, r"-o out.onnx: expected a name that ends in \.pt2"),
        ("--data full -o none/out.pt2", USAGE, "-o none/out.pt2: its folder does not exist"),
    ],
)
def test_training_checks_its_paths_first(cwd, capfd, options, status, told):
    refused(capfd, f"train mnist-mlp {options}", status, told)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--p 3", "p = 3 does not divide the 100,352 weights .* is 2"),
        ("--learning-rate -1", "learning rate -1.0: expected a number above 0"),
        ("--learning-rate nan", "learning rate nan"),
        ("--seed 9999999999999999999999", "seed 9999999999999999999999"),
        ("--set colour=red", "unknown setting 'colour': expected one of model, data, sizes"),
        ("--set epochs", "--set epochs: expected KEY=VALUE"),
        ("--set ema=much", "ema 'much': expected a number"),
        ("--set optimiser=lion", "optimiser 'lion': expected one of sgd, adam"),
        ("--set distill=0.5", "distill 0.5: needs a teacher"),
    ],
)
def test_settings_that_cannot_be_are_refused(cwd, capfd, option, told):
    refused(capfd, f"train mnist-mlp --data full -o out.pt2 {option}", USAGE, told)


# -- the command line itself -----------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "",
        "compil tiny.pt2",
        "compile",
        "compile tiny.pt2 --colour red",
        "run tiny.tbn",
        "micro",
        "micro flash project",
        "micro run project --input x.npy --timeout 0",
        "micro run project --input x.npy --timeout soon",
        "micro run project --input x.npy --timeout nan",
        "train cifar --data full -o out.pt2",
        "train mnist-mlp --data full -o out.pt2 --epochs 0",
        "train mnist-mlp --data full -o out.pt2 --polish-sweeps -1",
        "train mnist-mlp --data full -o out.pt2 --schedule linear",
    ],
)
def test_a_malformed_command_line_is_a_usage_error(cwd, capfd, command):
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(command))
    assert ended.value.code == USAGE
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("usage: tbn-tvm")
    assert err.count(": error: ") == 1


def run_process(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tbn_tvm.cli.main", *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    options = {"stdout": subprocess.PIPE, "timeout": 120, "env": environment, **options}
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize(
    ("command", "status", "told"),
    [
        ("compile truncated.pt2 -o out", FAILURE, "truncated.pt2: not a program"),
        ("run altered.tbn --input x.npy --output out.npz", FAILURE, "library.so is damaged"),
        ("micro build altered_code", FAILURE, "its file tiny.c was altered"),
        ("compile tiny.pt2 --target toaster -o out", USAGE, "unknown target 'toaster'"),
    ],
)
def test_a_process_ends_with_the_same_status_and_message(cwd, command, status, told):
    result = run_process(*shlex.split(command))
    assert result.returncode == status
    assert result.stdout == ""
    assert_one_message(result.stderr, told)


def test_the_installed_command_is_the_same(cwd):
    command = shutil.which("tbn-tvm", path=Path(sys.executable).parent)
    result = subprocess.run([command, "run", "none.tbn", "--input", "x"], capture_output=True)
    assert result.returncode == FAILURE
    assert_one_message(result.stderr.decode(), "none.tbn: no such file")


def test_a_reader_that_leaves_is_no_error(cwd):
    reader, writer = os.pipe()
    os.close(reader)
    result = run_process("micro", "boards", "--json", stdout=writer)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")


def test_an_interrupt_is_told_in_a_word(cwd, capfd, monkeypatch):
    def interrupt(_path):
        raise KeyboardInterrupt

    monkeypatch.setattr("tbn_tvm.runtime.is_artifact", interrupt)
    refused(capfd, "inspect tiny.tbn", 130, "interrupted")


def test_an_unforeseen_failure_is_one_line_and_its_trace_is_there_on_request(
    cwd, capfd, monkeypatch
):
    def fail(_path):
        raise ZeroDivisionError("division by zero\nsecond line")

    monkeypatch.setattr("tbn_tvm.runtime.is_artifact", fail)
    monkeypatch.delenv("TBN_TVM_TRACEBACK", raising=False)
    assert main(["inspect", "tiny.tbn"]) == FAILURE
    assert capfd.readouterr().err == (
        "tbn-tvm: error: internal error: ZeroDivisionError: division by zero "
        "(set TBN_TVM_TRACEBACK=1 to see where)\n"
    )
    monkeypatch.setenv("TBN_TVM_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        main(["inspect", "tiny.tbn"])
