"""A thousand damaged or hostile model files: each is refused, or computes what it says."""

from __future__ import annotations

import random

import pytest

from tbn_tvm.testing.fuzz import Worker, try_files
from tbn_tvm.testing.fuzz_models import onnx_models, torch_programs
from tbn_tvm.testing.mutations import mutate_archive, mutate_bytes, mutate_onnx

ONNX_FILES, PT2_FILES = 700, 300
"""A thousand in all."""


@pytest.fixture(scope="module")
def originals():
    return {f"{name}.onnx": content for name, content in onnx_models().items()} | {
        f"{name}.pt2": content for name, content in torch_programs().items()
    }


def mutants(originals: dict[str, bytes], suffix: str, count: int, folder):
    """Write mutants of the models of one kind, a quarter of them damaged byte by byte."""
    structural = mutate_onnx if suffix == ".onnx" else mutate_archive
    names = sorted(name for name in originals if name.endswith(suffix))
    for number in range(count):
        rng = random.Random(f"{suffix}{number}")
        name = names[number % len(names)]
        mutate = mutate_bytes if rng.random() < 0.25 else structural
        path = folder / f"{number}-{name}"
        path.write_bytes(mutate(originals[name], rng))
        yield path
        path.unlink()


def test_the_models_themselves_agree_with_the_judge(originals, tmp_path):
    with Worker(tmp_path) as worker:
        for name, content in originals.items():
            (tmp_path / name).write_bytes(content)
            assert worker.try_file(tmp_path / name) == ("agrees", ""), name


@pytest.mark.parametrize(("suffix", "count"), [(".onnx", ONNX_FILES), (".pt2", PT2_FILES)])
def test_damaged_files_are_refused_or_right(originals, tmp_path, suffix, count):
    findings = try_files(mutants(originals, suffix, count, tmp_path), tmp_path)
    assert findings.faults == [], findings.counts
    assert findings.counts.total() == count
    # The mutations must be of both kinds: those that break a file, and those that leave it whole.
    assert findings.counts["refused"] > count / 4
    assert findings.counts["agrees"] > count / 50
    # Nothing in a file was executed.
    assert not list(tmp_path.rglob("CANARY"))
