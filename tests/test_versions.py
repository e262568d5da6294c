"""Which versions work together, and what is imported when."""

import re
import subprocess
import sys
from importlib import metadata

import pytest

import tbn_tvm
from tbn_tvm import _tvm
from tbn_tvm._tvm import FFI_VERSION, MEND, TVM_VERSION, pair_problem
from tbn_tvm.cli.main import main
from tbn_tvm.errors import ToolError


def test_the_tested_pair_is_accepted():
    assert pair_problem(TVM_VERSION, FFI_VERSION) is None


@pytest.mark.parametrize("tvm", ["0.27.0", "0.27.1"])
def test_other_releases_of_the_same_series_are_accepted(tvm):
    assert pair_problem(tvm, FFI_VERSION) is None


@pytest.mark.parametrize(
    ("tvm", "ffi", "told"),
    [
        (None, FFI_VERSION, "apache-tvm is not installed"),
        (TVM_VERSION, None, "apache-tvm-ffi is not installed"),
        (None, None, "apache-tvm is not installed"),
        ("0.26.0", FFI_VERSION, "apache-tvm 0.26.0 is installed, 0.27 is needed"),
        ("0.270.0", FFI_VERSION, "0.27 is needed"),
        (TVM_VERSION, "0.1.15", "does not work with apache-tvm-ffi 0.1.15"),
        (TVM_VERSION, "0.1.14", "does not work with apache-tvm-ffi 0.1.14"),
    ],
)
def test_a_wrong_pair_is_refused_with_the_command_that_mends_it(tvm, ffi, told):
    problem = pair_problem(tvm, ffi)
    assert told in problem
    assert problem.endswith(f"run: {MEND}")


def test_the_mending_command_names_the_tested_pair():
    assert f'pip install "apache-tvm=={TVM_VERSION}" "apache-tvm-ffi=={FFI_VERSION}"' == MEND


def test_the_tested_pair_is_what_the_package_asks_for():
    wanted = metadata.requires("tbn-tvm")
    assert f"apache-tvm-ffi=={FFI_VERSION}" in wanted
    (series,) = [line for line in wanted if line.startswith("apache-tvm<")]
    assert set(re.split("[<>=,]+", series)) == {"apache-tvm", "0.27", "0.28"}


def test_the_installed_pair_is_checked_before_tvm_is_used(monkeypatch):
    versions = {"apache-tvm": TVM_VERSION, "apache-tvm-ffi": "0.1.15"}
    monkeypatch.setattr(_tvm, "installed", versions.get)
    with pytest.raises(ToolError, match=re.escape(MEND)):
        _tvm.check_pair()


def test_commands_refuse_a_wrong_pair(monkeypatch, capsys):
    monkeypatch.setattr(_tvm, "installed", {"apache-tvm": "0.26.0"}.get)
    assert main(["inspect", "model.pt2"]) == 1
    assert MEND in capsys.readouterr().err


def test_commands_that_need_no_tvm_run_without_it(monkeypatch, capsys):
    monkeypatch.setattr(_tvm, "installed", {}.get)
    assert main(["micro", "boards"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("installed", "told"), [(TVM_VERSION, TVM_VERSION), (None, "not installed")]
)
def test_the_version_names_tvms(monkeypatch, capsys, installed, told):
    def version(_name: str) -> str:
        if installed is None:
            raise metadata.PackageNotFoundError
        return installed

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"tbn-tvm {tbn_tvm.__version__} (Apache TVM {told})\n"


def imported_by(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has imported after some code."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return set(result.stdout.split())


def test_the_command_line_starts_without_heavy_imports():
    modules = imported_by(
        "import tbn_tvm\nfrom tbn_tvm.cli.main import build_parser\nbuild_parser()"
    )
    assert "tbn_tvm" in modules
    assert not modules & {"torch", "tvm", "tvm_ffi", "numpy", "rich", "jinja2"}


@pytest.mark.parametrize(
    ("code", "needed", "heavier"),
    [
        ("tbn_tvm.TiledTensor", {"numpy"}, {"torch", "tvm"}),
        ("tbn_tvm.Artifact", {"numpy"}, {"torch", "tvm"}),
        ("tbn_tvm.compile", {"numpy"}, {"torch", "tvm"}),
        ("tbn_tvm.targets", set(), {"numpy", "torch", "tvm"}),
        ("tbn_tvm.nn", {"torch"}, {"tvm"}),
    ],
)
def test_public_names_import_no_more_than_they_need(code, needed, heavier):
    modules = imported_by(f"import tbn_tvm\n{code}")
    assert needed <= modules
    assert not modules & heavier


def test_every_public_name_resolves():
    for name in tbn_tvm.__all__:
        assert getattr(tbn_tvm, name) is not None
    assert tbn_tvm.compile.__module__ == "tbn_tvm.compiler"
    assert callable(tbn_tvm.micro.Session)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'compiel'"):
        tbn_tvm.compiel  # noqa: B018
