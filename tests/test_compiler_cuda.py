"""Compiling for CUDA where there is no GPU, and what such an artifact needs to run."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

import tbn_tvm
from tbn_tvm import compiler, cuda
from tbn_tvm.cli.main import main
from tbn_tvm.errors import DeviceError, ToolError, UsageError
from tbn_tvm.models.resnet import resnet
from tbn_tvm.models.vit import vit
from tbn_tvm.nn import TiledLinear, freeze
from tbn_tvm.testing import cuda_emulator
from tbn_tvm.testing.emulated_model import EmulatedModel

try:
    NVCC = cuda.find_nvcc()
except ToolError:
    NVCC = None

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc not installed")
needs_emulator = pytest.mark.skipif(cuda_emulator.compiler() is None, reason="needs g++")


def make_vit() -> torch.nn.Module:
    sizes = dict(image_size=32, patch_size=8, dim=64, depth=2, heads=2, head_dim=32, mlp_dim=128)
    return vit(min_size=1000, classes=10, **sizes)


def make_resnet() -> torch.nn.Module:
    return resnet(widths=(8, 16, 16, 32), min_size=1000)


MAKERS = {"vit": make_vit, "resnet": make_resnet}


@pytest.fixture(scope="module", params=MAKERS)
def case(request) -> tuple:
    """An imported model with a free batch, an input, and PyTorch's output for it."""
    torch.manual_seed(0)
    model = freeze(MAKERS[request.param]())
    x = torch.randn(2, 3, 32, 32)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    imported = compiler.import_model(program, name=request.param)
    return imported, x.numpy(), model(x).detach().numpy()


def relative_error(y: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(y - expected).max() / np.abs(expected).max())


# -- what is computed ------------------------------------------------------------------------


@needs_emulator
@pytest.mark.parametrize("batch", [None, 2])
def test_the_kernels_and_the_memory_plan_compute_what_pytorch_does(case, batch):
    imported, x, expected = case
    model = EmulatedModel(imported.mod, {"kind": "cuda", "arch": "sm_80"}, batch)
    assert relative_error(model(x), expected) < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"batch": 2}, {"batch": 2, "cuda_graph": True}])
def test_a_gpu_computes_what_pytorch_does(case, options):
    imported, x, expected = case
    artifact = tbn_tvm.compile(imported, "cuda", **options)
    prepared = artifact.prepare(x)
    for _ in range(3):  # captured, then replayed
        assert relative_error(prepared(), expected) < 1e-4


@pytest.mark.gpu
def test_measured_memory_is_near_the_plan(case):
    imported, x, _ = case
    artifact = tbn_tvm.compile(imported, "cuda", batch=2)
    assert artifact.peak_memory is None
    artifact.run(x)
    # The driver hands out memory, that of code included, in pieces of 2 MiB.
    assert artifact.peak_memory < artifact.memory["peak"] + (32 << 20)


# -- artifacts -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def artifact(case) -> tbn_tvm.Artifact:
    if NVCC is None:
        pytest.skip("nvcc not installed")
    return tbn_tvm.compile(case[0], "cuda=sm_80")


@needs_nvcc
@pytest.mark.parametrize(
    ("arch", "options"), [("sm_90", {}), ("sm_90a", {"batch": 1, "cuda_graph": True})]
)
def test_every_architecture_is_compiled_for(case, arch, options):
    made = tbn_tvm.compile(case[0], {"kind": "cuda", "arch": arch}, **options)
    assert made.target == {"kind": "cuda", "arch": arch}
    (code,) = made.device_code.values()
    assert code[:4] == b"\x50\xed\x55\xba"  # what a fat binary begins with
    assert made.source not in made.library.decode("latin1")


def test_machine_code_is_part_of_the_file(artifact, tmp_path):
    loaded = tbn_tvm.Artifact.load(artifact.save(tmp_path / "model.tbn"))
    assert loaded.device_code == artifact.device_code
    assert loaded.memory == artifact.memory
    assert loaded.source == ""
    assert [a.nbytes for a in loaded.constants] == [a.nbytes for a in artifact.constants]


def test_damaged_machine_code_is_refused(artifact, tmp_path):
    path = artifact.save(tmp_path / "model.tbn")
    (code,) = artifact.device_code.values()
    data = path.read_bytes()
    at = data.index(code) + len(code) // 2
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(tbn_tvm.errors.ArtifactError, match="damaged"):
        tbn_tvm.Artifact.load(path)


def test_a_missing_device_is_told(artifact, case):
    if cuda.device_arch() is not None:
        pytest.skip("there is a CUDA device")
    with pytest.raises(DeviceError, match=r"is for cuda, and no CUDA device is visible"):
        artifact.run(case[1])


LOAD = """
import sys
import tvm
import tbn_tvm
from tbn_tvm.cuda import giving_code

artifact = tbn_tvm.Artifact.load(sys.argv[1])
with open(sys.argv[2], "wb") as file:
    file.write(artifact.library)
with giving_code(artifact.device_code):
    module = tvm.runtime.load_module(sys.argv[2])

def kinds(module):
    return [module.kind, *(kind for inner in module.imports for kind in kinds(inner))]

assert "cuda" in kinds(module), kinds(module)
print("loaded")
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_an_artifact_loads_where_no_compiler_is_installed(artifact, tmp_path):
    """With TVM's CUDA run time, whose driver library is a stand-in that finds no device."""
    if not Path("/usr/local/cuda/lib64/libcudart.so.13").exists():
        pytest.skip("libcudart.so.13 not installed")
    import tvm

    runtime = Path(tvm.__file__).parent / "lib" / "libtvm_runtime_cuda.so"
    symbols = subprocess.run(["nm", "-D", "-u", runtime], capture_output=True, text=True).stdout
    names = {word for word in symbols.split() if word.startswith("cu") and word[2].isupper()}
    (tmp_path / "driver.c").write_text("".join(f"int {n}(void) {{return 100;}}\n" for n in names))
    library = tmp_path / "libcuda.so.1"
    command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", library]
    subprocess.run([*command, tmp_path / "driver.c"], check=True)
    path = artifact.save(tmp_path / "model.tbn")
    environment = {
        **os.environ,
        "PATH": "/nonexistent",
        "LD_LIBRARY_PATH": f"{tmp_path}:/usr/local/cuda/lib64",
    }
    done = subprocess.run(
        [sys.executable, "-c", LOAD, path, tmp_path / "library.so"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "loaded\n", done.stderr


# -- options ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> compiler.Imported:
    """One tiled layer and a softmax, with a free batch."""
    torch.manual_seed(0)
    model = freeze(torch.nn.Sequential(TiledLinear(12, 8, p=4), torch.nn.Softmax(-1)))
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (torch.zeros(2, 12),), dynamic_shapes=({0: batch},))
    return compiler.import_model(program)


@pytest.mark.parametrize("target", ["llvm", pytest.param("cuda=sm_80", marks=needs_nvcc)])
def test_a_bounded_batch_is_planned_for_its_bound(tiny, target):
    free, bounded = (tbn_tvm.compile(tiny, target, max_batch=n) for n in (None, 512))
    fixed = tbn_tvm.compile(tiny, target, batch=512)
    assert (free.memory["batch"], bounded.memory["batch"]) == (1, 512)
    assert bounded.memory["inputs"] == 512 * free.memory["inputs"]
    assert fixed.memory["activations"] <= bounded.memory["activations"]
    assert bounded.signature.inputs[0].shape == ("batch", 12)
    assert fixed.signature.inputs[0].shape == (512, 12)
    with pytest.raises(tbn_tvm.errors.InputError, match="planned for 512 at most"):
        bounded.prepare(np.zeros((513, 12), np.float32))


def test_a_bounded_or_fixed_model_computes_the_same(tiny):
    x = np.random.default_rng(0).standard_normal((5, 12)).astype(np.float32)
    expected = tbn_tvm.compile(tiny, "llvm").run(x)
    for options in ({"max_batch": 8}, {"batch": 5}):
        y = tbn_tvm.compile(tiny, "llvm", **options).run(x)
        np.testing.assert_allclose(y, expected, atol=1e-6)


@needs_nvcc
def test_a_graph_needs_fixed_shapes(tiny):
    with pytest.raises(UsageError, match="batch is free: fix it with --batch N"):
        tbn_tvm.compile(tiny, "cuda", cuda_graph=True)


def test_a_fixed_batch_is_not_fixed_again():
    program = torch.export.export(torch.nn.Linear(3, 2), (torch.zeros(4, 3),))
    with pytest.raises(UsageError, match=r"--batch 2: .*\(4, 3\): expected one symbolic dimension"):
        tbn_tvm.compile(program, "llvm", batch=2)


def test_without_a_device_the_default_architecture_is_taken(monkeypatch):
    monkeypatch.setattr(cuda, "device_arch", lambda: None)
    assert compiler.resolve_target("cuda") == {"kind": "cuda", "arch": "sm_80"}
    assert compiler.resolve_target('{"kind": "cuda"}') == {"kind": "cuda", "arch": "sm_80"}
    monkeypatch.setattr(cuda, "device_arch", lambda: "sm_120")
    assert compiler.resolve_target("cuda") == {"kind": "cuda", "arch": "sm_120"}
    # Hopper's own instructions go by the suffix.
    assert compiler.resolve_target("cuda=sm_90") == {"kind": "cuda", "arch": "sm_90a"}


def test_without_nvcc_it_is_told_what_to_install(tiny, monkeypatch):
    monkeypatch.setattr(cuda.shutil, "which", lambda _name: None)
    monkeypatch.setattr(cuda, "NVCC_ROOTS", ())
    with pytest.raises(ToolError, match=r"needs nvcc, .* install NVIDIA's CUDA toolkit"):
        tbn_tvm.compile(tiny, "cuda=sm_80")


@needs_nvcc
def test_what_nvcc_refuses_is_told():
    with pytest.raises(ToolError, match=r"nvcc refused the kernels for sm_80: .*nonsense"):
        cuda.compile_source("#error nonsense", "sm_80")
    with pytest.raises(ToolError, match=r"for sm_35: .*compute_35"):
        cuda.compile_source("", "sm_35")


FACTORY = """
    import torch
    from tbn_tvm.nn import TiledLinear

    def make():
        model = torch.nn.Sequential(TiledLinear(12, 8, p=4), torch.nn.ReLU())
        return model, (torch.zeros(2, 12),), ({0: torch.export.Dim("batch", min=1)},)
"""


@needs_nvcc
def test_the_command_line_reports_memory_and_writes_the_source(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small_for_cuda.py").write_text(textwrap.dedent(FACTORY))
    command = ["compile", "small_for_cuda:make", "--target", "cuda=sm_90", "--emit", "cuda"]
    assert main([*command, "--batch", "4", "--cuda-graph", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    memory = report["memory"]
    assert memory["batch"] == 4
    assert memory["inputs"] == 4 * 12 * 4
    parts = ("weights", "inputs", "activations", "workspace")
    assert memory["peak"] == sum(memory[part] for part in parts)
    assert report["source"] == "make.cu"
    assert "__global__" in Path("make.cu").read_text()
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == [
        "make.cu",
        "make.tbn",
        "small_for_cuda.py",
    ]
    assert main(command) == 0
    table = capsys.readouterr().out
    assert "memory: peak as planned, bytes" in table
    assert "sm_90" in table
