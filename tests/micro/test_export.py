"""Exports: every kind builds as C99 and C++17, and computes what the other backends do."""

import ctypes
import json
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tbn_tvm
from tbn_tvm.cli.main import main
from tbn_tvm.compiler import import_model
from tbn_tvm.errors import UsageError
from tbn_tvm.micro.export import KINDS, create_export
from tbn_tvm.micro.export.export import _WRITERS
from tbn_tvm.micro.quantization import Calibration
from tbn_tvm.nn import TiledConv2d, TiledLinear, freeze
from tbn_tvm.targets import load_board

WARNINGS = ["-Wall", "-Wextra", "-Werror", "-pedantic"]
COMPILERS = {
    "C99": ["gcc", "-std=c99"],
    "C++17": ["g++", "-x", "c++", "-std=c++17"],
    "Cortex-M0": ["arm-none-eabi-gcc", "-std=c99", "-mcpu=cortex-m0", "-mthumb"],
    "Cortex-M4": ["arm-none-eabi-gcc", "-std=c99", *load_board("mps2-an386").cpu_flags],
    "Cortex-M4, C++17": [
        *["arm-none-eabi-g++", "-x", "c++", "-std=c++17"],
        *load_board("mps2-an386").cpu_flags,
    ],
}
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def dense() -> torch.nn.Sequential:
    return torch.nn.Sequential(TiledLinear(24, 16, p=4), torch.nn.ReLU(), TiledLinear(16, 5, p=2))


def conv() -> torch.nn.Sequential:
    return torch.nn.Sequential(
        TiledConv2d(1, 8, 3, padding=1, p=4),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        TiledLinear(8 * 4 * 4, 10, p=2),
    )


NETWORKS = {"dense": (dense, (24,)), "conv": (conv, (1, 8, 8))}


class Case:
    """A network, its exports of every kind, and what others make of an input."""

    def __init__(self, network: str, integers: bool, folder: Path) -> None:
        make, shape = NETWORKS[network]
        torch.manual_seed(0)
        x = torch.randn(40, *shape)
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(freeze(make()), (x,), dynamic_shapes=({0: batch},))
        model = import_model(program, name="net")
        self.name = model.signature.inputs[0].name
        calibration = Calibration({self.name: x.numpy()}) if integers else None
        export = create_export(model, "lib", calibration=calibration)
        # Lowered once: the kinds differ in what they wrap around the same source.
        self.exports = {
            kind: replace(export, kind=kind, files=files(export.facts))
            for kind, files in _WRITERS.items()
        }
        self.folder = folder
        self.facts = export.facts
        self.x = x[0].numpy()
        self.expected = tbn_tvm.compile(program, "llvm").run(self.x[None])[0]
        self.tolerance = 1e-5
        if integers:
            scale = export.facts.lowered.quantization.inputs[0]
            self.x = scale.dequantize(scale.quantize(self.x))
            quantized = calibration.quantized(model)
            self.real = self.expected
            self.expected = quantized.run(self.x[None])[0][0]
            self.tolerance = 1e-6

    def saved(self, kind: str) -> Path:
        """The export's folder."""
        folder = self.folder / kind
        if not folder.exists():
            if kind == "mlf":
                path = self.exports[kind].save(self.folder / "net.tar")
                with tarfile.open(path) as archive:
                    archive.extractall(folder, filter="data")
            else:
                self.exports[kind].save(folder)
        return folder

    def numbers(self) -> str:
        return "\n".join(f"{value:.9g}" for value in self.x.reshape(-1))


@pytest.fixture(
    scope="module",
    params=[("dense", False), ("dense", True), ("conv", False), ("conv", True)],
    ids=lambda param: f"{param[0]}-{'int8' if param[1] else 'float32'}",
)
def case(request, tmp_path_factory) -> Case:
    return Case(*request.param, tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Case:
    """One of them, where one is enough."""
    return Case("dense", False, tmp_path_factory.mktemp("export"))


def run(command: list, **options) -> str:
    """A command's output; its messages where it fails."""
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=120, **options
    )
    assert result.returncode == 0, f"{shlex.join(map(str, command))}\n{result.stderr}"
    return result.stdout


def read(text: str) -> np.ndarray:
    return np.array(text.split(), np.float32)


# -- all kinds -------------------------------------------------------------------------------


@pytest.mark.parametrize("compiler", COMPILERS)
def test_sources_build_without_warnings(case, compiler):
    command = COMPILERS[compiler]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} not installed")
    lib, mlf = case.saved("lib"), case.saved("mlf") / "codegen/host"
    sources = [lib / "net.c", mlf / "src/net_lib1.c"]
    if not command[0].startswith("arm"):
        sources.append(lib / "example/main.c")
    for source in sources:
        out = case.folder / f"{source.stem}.o"
        run([*command, *WARNINGS, "-O2", f"-I{mlf}/include", "-c", source, "-o", out])


def test_every_kind_holds_the_same_model(case):
    lib = case.exports["lib"].files
    sources = {"arduino": "src/net.c", "zephyr": "src/net.c", "mlf": "codegen/host/src/net_lib0.c"}
    headers = {
        "arduino": "src/net.h",
        "zephyr": "include/net.h",
        "mlf": "codegen/host/include/net.h",
    }
    for kind in sources:
        assert case.exports[kind].files[sources[kind]] == lib["net.c"]
        assert case.exports[kind].files[headers[kind]] == lib["net.h"]


def test_models_need_no_heap_and_no_stdio(case):
    banned = re.compile(rb"malloc|calloc|free\(|stdio|printf|tvm/|TVMBackend")
    for kind in KINDS:
        for name, data in case.exports[kind].files.items():
            if name.endswith((".c", ".h")) and "example" not in name and "sample" not in name:
                assert not banned.search(data), f"{kind}: {name}"


# -- the plain library -----------------------------------------------------------------------


@pytest.mark.parametrize("standard", ["C99", "C++17"])
def test_the_example_runs_under_sanitizers_and_agrees(case, standard):
    folder = case.saved("lib")
    out = case.folder / f"example-{len(standard)}"
    flags = [*COMPILERS[standard], *WARNINGS, "-O1", "-g", *SANITIZERS, f"-I{folder}"]
    run([*flags, folder / "net.c", folder / "example/main.c", "-lm", "-o", out])
    y = read(run([out], input=case.numbers()))
    np.testing.assert_allclose(y, case.expected, rtol=case.tolerance, atol=case.tolerance)
    if case.facts.lowered.quantization:
        # In 8 bits a network differs from itself in real numbers, but not by much.
        assert np.abs(y - case.real).max() < 0.1 * np.abs(case.real).max()


def test_cmake_builds_the_library_and_its_example(small, tmp_path):
    if shutil.which("cmake") is None:
        pytest.skip("cmake not installed")
    flags = f"-DCMAKE_C_FLAGS={' '.join(WARNINGS)}"
    run(["cmake", "-S", small.saved("lib"), "-B", tmp_path, flags])
    run(["cmake", "--build", tmp_path])
    y = read(run([tmp_path / "net_example"], input=small.numbers()))
    np.testing.assert_allclose(y, small.expected, rtol=1e-5, atol=1e-5)
    assert (tmp_path / "libtbn_net.a").exists()


def test_the_commands_of_the_readme_work(small, tmp_path):
    shutil.copytree(small.saved("lib"), tmp_path / "net")
    text = (tmp_path / "net" / "README.md").read_text()
    (by_hand,) = [line.strip() for line in text.splitlines() if "-c net.c" in line]
    run(shlex.split(by_hand), cwd=tmp_path / "net")
    snippet = text.partition("```c\n")[2].partition("```")[0]
    include, *body = snippet.strip().splitlines()
    lines = [include, "int main(void) {", *body, "return input == 0 || output == 0; }"]
    (tmp_path / "main.c").write_text("\n".join(lines))
    out = tmp_path / "main"
    flags = ["-std=c99", *WARNINGS, f"-I{tmp_path}/net"]
    run(["gcc", *flags, tmp_path / "main.c", tmp_path / "net/net.c", "-lm", "-o", out])
    run([out])


# -- Model Library Format --------------------------------------------------------------------


def test_the_archive_runs_by_microtvms_names(case):
    folder = case.saved("mlf")
    host = folder / "codegen" / "host"
    library = case.folder / "net.so"
    sources = sorted((host / "src").glob("*.c"))
    flags = ["-std=c99", *WARNINGS, "-shared", "-fPIC", f"-I{host}/include"]
    run(["gcc", *flags, *sources, "-lm", "-o", library])
    entry = ctypes.CDLL(str(library)).tvmgen_net_run
    (given,), (made,) = case.facts.inputs, case.facts.outputs
    x = case.x.astype(np.float32).reshape(-1)
    y = np.zeros(made.count, made.dtype)
    scales = case.facts.lowered.quantization
    if scales is not None:
        x = scales.inputs[0].quantize(x)
    before = x.copy()
    pointers = [(ctypes.c_void_p * 1)(array.ctypes.data) for array in (x, y)]
    assert entry(*pointers) == 0
    np.testing.assert_array_equal(x, before)
    real = y if scales is None else scales.outputs[0].dequantize(y)
    np.testing.assert_allclose(real, case.expected, rtol=case.tolerance, atol=case.tolerance)
    assert entry(None, pointers[1]) == -1
    assert entry(pointers[0], (ctypes.c_void_p * 1)(None)) == -1
    text = (host / "include" / "tvmgen_net.h").read_text()
    assert f"#define TVMGEN_NET_{given.name.upper()}_SIZE {given.bytes}" in text
    assert f"#define TVMGEN_NET_WORKSPACE_SIZE {case.exports['mlf'].memory['arena']}" in text


def test_the_archives_metadata_has_version_7s_entries(small):
    folder = small.saved("mlf")
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["version"] == 7
    module = metadata["modules"]["net"]
    assert set(module) == {
        *("model_name", "export_datetime", "memory", "target", "executors", "style"),
    }
    assert module["executors"] == ["aot"]
    assert module["style"] == "full-model"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", module["export_datetime"])
    (main,) = module["memory"]["functions"]["main"]
    assert main["inputs"] == {small.name: {"size": 96, "dtype": "float32"}}
    assert main["outputs"] == {"output": {"size": 20, "dtype": "float32"}}
    assert main["workspace_size_bytes"] == small.exports["mlf"].memory["arena"]
    assert main["constants_size_bytes"] == small.exports["mlf"].memory["weights"]
    functions = [f["function_name"] for f in module["memory"]["functions"]["operator_functions"]]
    source = (folder / "codegen/host/src/net_lib0.c").read_text()
    assert functions and all(f"void {name}(" in source for name in functions)
    config = json.loads((folder / "runtime-config.json").read_text())
    assert all((folder / name).exists() for name in config["sources"])
    assert "R.tbn.tiled_dense" in (folder / "src/net.relax").read_text()


def test_the_archives_parameters_load_in_tvm(small):
    import tvm

    loaded = tvm.runtime.load_param_dict(
        (small.saved("mlf") / "parameters/net.params").read_bytes()
    )
    constants = small.facts.lowered.program.constants
    assert set(loaded) == {constant.name for constant in constants}
    for constant in constants:
        np.testing.assert_array_equal(loaded[constant.name].numpy(), constant.data)


def test_an_archive_is_reproducible_where_its_time_is_given(small, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    whole = []
    for name in ("a.tar", "b.tar"):
        export = replace(small.exports["mlf"], files=_WRITERS["mlf"](small.facts))
        whole.append(export.save(tmp_path / name).read_bytes())
    assert whole[0] == whole[1]
    assert b"2023-11-14 22:13:20Z" in whole[0]


# -- Arduino ---------------------------------------------------------------------------------

ARDUINO = """
#include <cmath>
#include <cstdint>
#include <cstdio>
struct Stream {
  void begin(long) {}
  explicit operator bool() const { return true; }
  void print(const char *text) { std::printf("# %s", text); }
  void println(const char *text) { std::printf("# %s\\n", text); }
  void println(unsigned long value) { std::printf("%lu\\n", value); }
  void println(long value) { std::printf("%ld\\n", value); }
  void println(double value, int digits) { std::printf("%.*f\\n", digits, value); }
};
static Stream Serial;
static inline unsigned long micros() { return 0; }
static inline unsigned long millis() { return 0; }
static inline void delay(unsigned long) {}
"""


def test_the_arduino_sketch_compiles_and_runs(case, tmp_path):
    """With stand-ins for the core's functions; the IDE puts its header first just so."""
    folder = case.saved("arduino")
    (tmp_path / "Arduino.h").write_text(ARDUINO)
    (sketch,) = folder.glob("examples/*/*.ino")
    assert sketch.stem == sketch.parent.name
    text = sketch.read_text()
    main = tmp_path / "main.cpp"
    main.write_text(f"#include <Arduino.h>\n{text}\nint main() {{ setup(); loop(); }}\n")
    model = tmp_path / "net.o"
    run([*COMPILERS["C99"], *WARNINGS, "-c", folder / "src/net.c", "-o", model])
    out = tmp_path / "sketch"
    flags = ["-std=c++17", *WARNINGS, f"-I{tmp_path}", f"-I{folder}/src"]
    run(["g++", *flags, main, model, "-lm", "-o", out])
    lines = [line for line in run([out]).splitlines() if not line.startswith("#")]
    assert len(lines) == case.facts.outputs[0].count
    assert np.isfinite(read("\n".join(lines))).all()


def test_the_arduino_library_describes_itself(case):
    folder = case.saved("arduino")
    lines = (folder / "library.properties").read_text().splitlines()
    properties = dict(line.split("=", 1) for line in lines)
    # What the library specification asks for.
    for field in ("name", "version", "author", "maintainer", "sentence", "url"):
        assert properties[field]
    assert re.fullmatch(r"\d+\.\d+\.\d+", properties["version"])
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.\- ]{0,62}", properties["name"])
    assert properties["category"] == "Data Processing"
    assert (folder / "src" / properties["includes"]).exists()
    header = (folder / "src/net.h").read_text()
    for line in (folder / "keywords.txt").read_text().splitlines():
        word, _tab, kind = line.partition("\t")
        assert kind in ("KEYWORD2", "LITERAL1")
        assert re.search(rf"\b{word}\b", header)


# -- Zephyr ----------------------------------------------------------------------------------

ZEPHYR_CONFIG = """
function(zephyr_include_directories)
  foreach(folder ${ARGN})
    include_directories(${CMAKE_CURRENT_SOURCE_DIR}/${folder})
    target_include_directories(app PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/${folder})
  endforeach()
endfunction()
function(zephyr_library_named name)
  set(ZEPHYR_CURRENT_LIBRARY ${name} PARENT_SCOPE)
  add_library(${name} STATIC)
endfunction()
function(zephyr_library_sources)
  target_sources(${ZEPHYR_CURRENT_LIBRARY} PRIVATE ${ARGN})
  target_link_libraries(app PRIVATE ${ZEPHYR_CURRENT_LIBRARY} m)
endfunction()
enable_language(C)
file(STRINGS ${CMAKE_CURRENT_SOURCE_DIR}/prj.conf lines REGEX "^CONFIG_")
foreach(line ${lines})
  string(REPLACE "=" ";" pair ${line})
  set(${pair})
endforeach()
file(WRITE ${CMAKE_BINARY_DIR}/empty.c "")
add_executable(app ${CMAKE_BINARY_DIR}/empty.c)
target_include_directories(app PRIVATE ${CMAKE_CURRENT_LIST_DIR}/include)
foreach(module ${ZEPHYR_EXTRA_MODULES})
  add_subdirectory(${module} ${CMAKE_BINARY_DIR}/module)
endforeach()
"""
KERNEL = """
#include <stdint.h>
static inline uint32_t k_cycle_get_32(void) { return 0; }
"""
PRINTK = """
#include <stdio.h>
#define printk printf
"""


def test_the_zephyr_sample_builds_with_stand_ins(case, tmp_path):
    """The CMake functions and headers it needs, as stand-ins: Zephyr itself is not at hand."""
    folder = case.saved("zephyr")
    (tmp_path / "include/zephyr/sys").mkdir(parents=True)
    (tmp_path / "include/zephyr/kernel.h").write_text(KERNEL)
    (tmp_path / "include/zephyr/sys/printk.h").write_text(PRINTK)
    main = folder / "samples/net/src/main.c"
    flags = [*WARNINGS, f"-I{tmp_path}/include", f"-I{folder}/include"]
    for standard in ("C99", "C++17"):
        run([*COMPILERS[standard], *flags, "-c", main, "-o", tmp_path / "main.o"])


def test_the_zephyr_modules_cmake_is_sound(small, tmp_path):
    if shutil.which("cmake") is None:
        pytest.skip("cmake not installed")
    folder = small.saved("zephyr")
    (tmp_path / "zephyr/include/zephyr/sys").mkdir(parents=True)
    (tmp_path / "zephyr/ZephyrConfig.cmake").write_text(ZEPHYR_CONFIG)
    (tmp_path / "zephyr/include/zephyr/kernel.h").write_text(KERNEL)
    (tmp_path / "zephyr/include/zephyr/sys/printk.h").write_text(PRINTK)
    build = tmp_path / "build"
    package = f"-DZephyr_DIR={tmp_path}/zephyr"
    run(["cmake", "-Wno-dev", "-S", folder / "samples/net", "-B", build, package])
    run(["cmake", "--build", build])
    out = run([build / "app"])
    assert out.startswith("net: 0 cycles\n")
    assert out.count("/ 1000") == 5


def test_the_zephyr_modules_descriptions_are_sound(small):
    folder = small.saved("zephyr")
    # Blocks of `key: value` two columns deeper each, which is all of YAML that is used.
    for name in ("zephyr/module.yml", "samples/net/sample.yaml"):
        for line in (folder / name).read_text().splitlines():
            assert re.fullmatch(r'(  )*(- )?([\w.]+:( [\w. ]+)?|"net: .*"|[\w.]+)', line), line
    module = (folder / "zephyr/module.yml").read_text()
    (kconfig,) = re.findall(r"^  kconfig: (.*)$", module, re.M)
    symbol, *rest = (folder / kconfig).read_text().splitlines()
    assert symbol == "config TBN_NET"
    assert all(line.startswith("\t") for line in rest)
    assert "CONFIG_TBN_NET=y" in (folder / "samples/net/prj.conf").read_text()
    assert "if(CONFIG_TBN_NET)" in (folder / "CMakeLists.txt").read_text()


# -- names -----------------------------------------------------------------------------------


def test_names_that_cpp_reserves_and_that_inputs_and_outputs_share(tmp_path):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = TiledLinear(16, 8, p=4)

        def forward(self, new, output):
            return self.layer(new) + output

    program = torch.export.export(freeze(Net()), (torch.zeros(1, 16), torch.zeros(1, 8)))
    model = import_model(program, name="my_test")
    assert [spec.name for spec in model.signature.outputs] == ["output"]
    for kind in KINDS:
        export = create_export(model, kind)
        assert export.facts.title == "MyTest"
        export.save(tmp_path / kind)
    with tarfile.open(tmp_path / "mlf") as archive:
        archive.extractall(tmp_path / "archive", filter="data")
    sources = [*tmp_path.rglob("main.c"), *tmp_path.rglob("my_test*.c")]
    include = f"-I{tmp_path}/archive/codegen/host/include"
    for source in (path for path in sources if "samples" not in path.parts):
        for standard in ("C99", "C++17"):
            run([*COMPILERS[standard], *WARNINGS, include, "-c", source, "-o", tmp_path / "o"])


def test_a_scale_that_is_a_whole_number(tmp_path):
    """A pixel of 0 to 255 has the scale 1, which in C is 1.0f and not 1f."""
    layer = torch.nn.Sequential(TiledLinear(16, 8, p=4))
    model = import_model(torch.export.export(freeze(layer), (torch.zeros(1, 16),)), name="net")
    pixels = np.linspace(0, 255, 64, dtype=np.float32).reshape(4, 16)
    export = create_export(model, "lib", calibration=Calibration({"input": pixels}))
    assert export.facts.lowered.quantization.inputs[0].scale == 1.0
    folder = export.save(tmp_path / "net")
    flags = [*COMPILERS["C99"], *WARNINGS, f"-I{folder}"]
    run([*flags, folder / "net.c", folder / "example/main.c", "-lm", "-o", tmp_path / "example"])


# -- saving ----------------------------------------------------------------------------------


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_an_export_replaces_its_forerunner_and_nothing_else(small, tmp_path):
    folder = tmp_path / "out"
    export = small.exports["lib"]
    old = replace(export, files={**export.files, "old.c": b"/* gone in the next */"})
    old.save(folder)
    (folder / "build").mkdir()
    (folder / "build" / "mine.o").write_text("mine")
    export.save(folder)
    assert listing(folder) == {*export.files, "tbn-tvm.json", "build/mine.o"}
    assert list(tmp_path.iterdir()) == [folder]


def test_an_edited_file_is_not_overwritten(small, tmp_path):
    small.exports["lib"].save(tmp_path / "out")
    main = tmp_path / "out" / "example" / "main.c"
    main.write_text("/* my program */")
    with pytest.raises(UsageError, match=r"example/main\.c was edited"):
        small.exports["lib"].save(tmp_path / "out")
    assert main.read_text() == "/* my program */"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_export_stays_as_it_is(small, tmp_path, kind):
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep me")
    with pytest.raises(UsageError):
        small.exports[kind].save(folder)
    assert listing(tmp_path) == {"full/notes.txt"}
    if kind != "mlf":
        with pytest.raises(UsageError, match="is a file"):
            small.exports[kind].save(folder / "notes.txt")
        small.exports["lib" if kind != "lib" else "zephyr"].save(tmp_path / "other")
        with pytest.raises(UsageError, match="holds an export as"):
            small.exports[kind].save(tmp_path / "other")


@pytest.mark.parametrize("kind", KINDS)
def test_a_write_that_fails_leaves_nothing(small, tmp_path, kind, monkeypatch):
    def fail(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    target = (Path, "write_bytes") if kind != "mlf" else (tarfile.TarFile, "addfile")
    monkeypatch.setattr(*target, fail)
    with pytest.raises(OSError):
        small.exports[kind].save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# -- the command line ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with a model, samples and something in the way."""
    folder = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    torch.export.save(
        torch.export.export(freeze(dense()), (torch.zeros(1, 24),)), folder / "net.pt2"
    )
    np.save(folder / "samples.npy", np.random.default_rng(0).normal(size=(9, 24)).astype("f4"))
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("keep me")
    return folder


def test_the_command_exports_for_a_board_in_integers(workplace):
    arguments = (
        "compile net.pt2 --export lib --target microbit --activations int8 "
        "--calibration samples.npy -o out --json"
    )
    line = [sys.executable, "-m", "tbn_tvm.cli.main", *shlex.split(arguments)]
    told = json.loads(run(line, cwd=workplace))
    assert (told["export"], told["target"], told["path"]) == ("lib", "microbit", "out")
    assert listing(workplace / "out") == {*told["files"], "tbn-tvm.json"}
    assert "-mcpu=cortex-m0" in (workplace / "out" / "README.md").read_text()
    assert "_SCALE" in (workplace / "out" / "net.h").read_text()


def test_the_command_names_what_it_writes_after_the_model(workplace, monkeypatch, capfd):
    monkeypatch.chdir(workplace)
    assert main(shlex.split("compile net.pt2 --export mlf --name thing")) == 0
    assert re.search(r"mlf +│ thing\.tar", capfd.readouterr().out)
    with tarfile.open(workplace / "thing.tar") as archive:
        assert "./codegen/host/include/tvmgen_thing.h" in archive.getnames()


BAD = [
    ("compile net.pt2 --export lib --target llvm -o x", 2, "an export is for c .any core. or a bo"),
    ("compile net.pt2 --export lib --target '' -o x", 2, "an export is for c .any core. or a bo"),
    ("compile net.pt2 --target c -o x", 2, "unknown target 'c'"),
    ("compile net.pt2 --export lib --batch 2 -o x", 2, "--batch is for TVM's run time"),
    ("compile net.pt2 --export lib --activations int8 -o x", 2, "--calibration FILE belong toget"),
    ("compile net.pt2 --export lib -o full", 2, "full: is not empty and holds no export"),
    ("compile net.pt2 --export mlf -o full", 2, "full: is a folder"),
    ("compile none.pt2 --export lib -o x", 1, "none.pt2: no such file"),
    (
        "compile net.pt2 --export lib --activations int8 --calibration none.npy -o x",
        *(1, "none.npy: no such file"),
    ),
]


@pytest.mark.parametrize(("arguments", "status", "told"), BAD, ids=[b[0] for b in BAD])
def test_bad_requests_are_told_in_a_line(workplace, arguments, status, told, monkeypatch, capfd):
    monkeypatch.chdir(workplace)
    assert main(shlex.split(arguments)) == status
    out, err = capfd.readouterr()
    assert out == ""
    assert re.search(told, err), err
    assert err.count("error: ") == 1
    assert "Traceback" not in err
    assert not (workplace / "x").exists()
    assert listing(workplace / "full") == {"notes.txt"}


def test_an_unknown_kind_is_a_usage_error(capfd):
    with pytest.raises(SystemExit) as ended:
        main(["compile", "net.pt2", "--export", "tarball"])
    assert ended.value.code == 2
    assert "invalid choice: 'tarball'" in capfd.readouterr().err
