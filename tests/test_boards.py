"""Boards are data: every one that is shipped loads, and a wrong one says what is wrong."""

import re
import shutil
import subprocess

import pytest

from tbn_tvm import targets
from tbn_tvm.errors import UsageError
from tbn_tvm.targets import board_names, load_board

BOARD = "mps2-an386"
COMPILER = "arm-none-eabi-gcc"
ARCHITECTURES = {
    "armv6-m": "__ARM_ARCH_6M__",
    "armv7-m": "__ARM_ARCH_7M__",
    "armv7e-m": "__ARM_ARCH_7EM__",
    "armv8-m.main": "__ARM_ARCH_8M_MAIN__",
    "armv8.1-m.main": "__ARM_ARCH_8M_MAIN__",  # GCC tells the two apart by MVE only
}
"""What the compiler defines for each architecture."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the boards, to change."""
    copy = tmp_path / "targets"
    shutil.copytree(targets.FOLDER, copy)
    monkeypatch.setattr(targets, "FOLDER", copy)
    return copy


def change(folder, old: str, new: str) -> None:
    path = folder / BOARD / "board.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("name", board_names())
def test_every_board_loads_and_its_files_exist(name):
    board = load_board(name)
    assert board.name == name
    assert board.description and board.core and board.emulator_machine
    assert all(path.is_file() for path in (*board.sources, board.linker_script))
    assert all(define.partition("=")[2] for define in board.defines)


@pytest.mark.parametrize("name", board_names())
def test_every_boards_figures_are_plausible(name):
    board = load_board(name)
    assert 0 < board.stack_bytes < board.ram_bytes
    assert board.flash_bytes > 0
    assert board.clock_hz >= 1_000_000
    assert board.instructions_per_tick >= 1
    assert any(flag.startswith("-mcpu=") for flag in board.cpu_flags)


@pytest.mark.parametrize("name", board_names())
def test_the_linker_script_says_what_the_description_says(name):
    board = load_board(name)
    script = board.linker_script.read_text()
    sizes = dict(re.findall(r"^\s*(FLASH|RAM)\b.*LENGTH = (\w+)$", script, re.MULTILINE))
    sizes["stack"] = re.search(r"^__stack_size = (\w+);", script, re.MULTILINE).group(1)
    units = {"K": 2**10, "M": 2**20}
    assert {key: int(size[:-1]) * units[size[-1]] for key, size in sizes.items()} == {
        "FLASH": board.flash_bytes,
        "RAM": board.ram_bytes,
        "stack": board.stack_bytes,
    }


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"{COMPILER} not installed")
@pytest.mark.parametrize("name", board_names())
def test_the_compilers_flags_say_what_the_description_says(name):
    board = load_board(name)
    command = [COMPILER, *board.cpu_flags, "-dM", "-E", "-x", "c", "/dev/null"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    macros = dict(line.split(" ", 2)[1:] for line in printed.splitlines())
    precisions = int(macros.get("__ARM_FP", "0"), 0)  # a bit each: 2 half, 4 single, 8 double
    compiled = {
        "dsp": "__ARM_FEATURE_DSP" in macros,
        "fpu": bool(precisions & 4),
        "double": bool(precisions & 8),
        "mve": "__ARM_FEATURE_MVE" in macros,
    }
    assert board.features == {feature for feature, has in compiled.items() if has}
    assert board.fpu == ("double" if precisions & 8 else "single" if precisions & 4 else "none")
    assert ARCHITECTURES[board.architecture] in macros
    assert ("__ARM_FEATURE_UNALIGNED" in macros) == (board.architecture != "armv6-m")


def test_the_reference_board_is_shipped():
    assert BOARD in board_names()
    assert board_names() == sorted(board_names())


@pytest.mark.parametrize("name", ["mps2", "", "cortex_m", "../targets/mps2-an386"])
def test_an_unknown_board_is_refused_with_the_known_ones(name):
    with pytest.raises(UsageError, match=f"unknown board '{name}': expected one of .*{BOARD}"):
        load_board(name)


def test_a_new_board_needs_only_a_folder(folder):
    shutil.copytree(folder / BOARD, folder / "mine")
    change(folder, "ram_bytes = 4_194_304", "ram_bytes = 65_536")
    assert {BOARD, "mine"} <= set(board_names())
    assert load_board(BOARD).ram_bytes == 65_536
    assert load_board("mine").ram_bytes == 4_194_304


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        ("ram_bytes = 4_194_304", "memory.ram_bytes"),
        ("clock_hz = 25_000_000", "core.clock_hz"),
        ('linker_script = "mps2-an386/linker.ld"', "linker_script"),
        ("[emulator]", "emulator.machine"),
    ],
)
def test_a_missing_entry_is_named(folder, line, entry):
    change(folder, line, "[other]" if line.startswith("[") else "")
    with pytest.raises(UsageError, match=f"board.toml: the entry '{entry}' is missing"):
        load_board(BOARD)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("stack_bytes = 8_192", 'stack_bytes = "8 KiB"', "stack_bytes' is '8 KiB': expected int"),
        ("timer_hz = 25", "timer_hz = true #", "timer_hz' is True: expected int"),
        ("timer_hz = 25_000_000", "timer_hz = 0", "timer_hz' is 0: expected more than 0"),
        ("ram_bytes = 4_194_304", "ram_bytes = -1", "ram_bytes' is -1: expected more than 0"),
        ('fpu = "single"', 'fpu = "half"', "fpu' is 'half': expected one of none, single, double"),
        ("armv7e-m", "armv7e", "architecture' is 'armv7e': expected one of armv6-m, armv7-m"),
        ("dsp = true", 'dsp = "yes"', "dsp' is 'yes': expected bool"),
        ('name = "Cortex-M4F"', "name = 4", "'core.name' is 4: expected str"),
        ('sources = ["', 'sources = [7, "', "'sources' is .7, .*: expected a list of str"),
        ('linker_script = "mps2-an386/linker.ld"', "linker_script = []", "expected str"),
        ("[core]\n", 'core = "M4"\n[core_]\n', "'core\\.[a-z]+' is missing"),
    ],
)
def test_an_entry_of_another_kind_is_refused(folder, old, new, told):
    change(folder, old, new)
    with pytest.raises(UsageError, match=rf"board\.toml: .*{told}"):
        load_board(BOARD)


def test_a_description_that_is_no_toml_is_refused(folder):
    (folder / BOARD / "board.toml").write_text("description = ")
    with pytest.raises(UsageError, match=r"board\.toml: not valid TOML"):
        load_board(BOARD)
