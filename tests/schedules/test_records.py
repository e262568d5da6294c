"""The record store: what is kept, what is found again, and what is ignored with a word."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax

from tbn_tvm import op, pipeline
from tbn_tvm.relay_passes import LowerTiledProducts
from tbn_tvm.schedules import cpu, cuda, records
from tbn_tvm.schedules.families import family_of
from tbn_tvm.schedules.records import Records, store
from tbn_tvm.schedules.records.identity import address, folder_name, identity, thread_class
from tbn_tvm.schedules.records.report import used_kernels
from tbn_tvm.schedules.records.store import Entry, Record, UnusableError
from tbn_tvm.schedules.reference import Product
from tbn_tvm.schedules.rules import DENSE, Workload, choose
from tbn_tvm.tiling import Geometry, TiledTensor

# Portable code for a CPU that no test runs on: nothing here is executed.
TARGET = tvm.target.Target(
    {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "haswell", "num-cores": 4}
)
FAMILY = family_of(TARGET)
WORKLOAD = Workload(DENSE, Product(Geometry(256, 64, 64 * 128), 2), 3, "float32", FAMILY.features)
KERNEL = FAMILY.kernels[choose(FAMILY.rules, WORKLOAD)]


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """No notice was given yet, nothing is shipped, and there is no folder by default."""
    monkeypatch.setattr(store, "_told", set())
    monkeypatch.setattr(records, "SHIPPED", tmp_path / "shipped")
    monkeypatch.delenv(records.VARIABLE, raising=False)


def other_config(kernel=KERNEL, workload=WORKLOAD) -> dict:
    """A valid configuration that is not the default."""
    return next(c for c in kernel.configs(workload) if c != kernel.default(workload))


def entry(config=None, seconds=1e-6, default=2e-6, **changes) -> Entry:
    about = {"kernel": KERNEL.name, "config": {}, "seconds": default}
    return replace(Entry(KERNEL.version, config, seconds, about, 8, "a CPU"), **changes)


def record(config=None, workload=WORKLOAD, **changes) -> Record:
    made = entry(config or other_config(), **changes)
    return Record(workload, identity(TARGET), {KERNEL.name: made})


# -- addresses -------------------------------------------------------------------------------


def test_a_record_is_addressed_by_its_workload_and_target():
    here = identity(TARGET)
    assert folder_name(here) == "llvm-x86_64-haswell-4t"
    base = dict(TARGET.attrs)
    others = [
        identity(tvm.target.Target({"kind": "llvm", **base, **change}))
        for change in ({"mcpu": "znver3"}, {"num-cores": 16}, {"mattr": ["+avx512f"]})
    ]
    others += [identity(tvm.target.Target({"kind": "cuda", "arch": a})) for a in ("sm_80", "sm_90")]
    addresses = {address(WORKLOAD, found) for found in (here, *others)}
    addresses |= {address(WORKLOAD.at_batch(batch), here) for batch in (1, None)}
    assert len(addresses) == 8
    assert address(replace(WORKLOAD, features=frozenset()), here) in addresses


def test_threads_count_by_powers_of_two():
    assert [thread_class(count) for count in (1, 2, 3, 4, 5, 16, 17)] == [1, 2, 4, 4, 8, 16, 32]


# -- files -----------------------------------------------------------------------------------


def test_a_record_is_read_as_it_was_written(tmp_path):
    written = record()
    path = store.write(tmp_path, written)
    assert path == tmp_path / written.path
    assert store.read(tmp_path, WORKLOAD, identity(TARGET)) == written
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def altered(change) -> str:
    """The text of a record with a change and the right hash of what it then says."""
    content = json.loads(record().dumps())
    change(content)
    content.pop("content_hash", None)
    return json.dumps({**content, "content_hash": store.digest(content)})


DAMAGED = {
    "empty": ("", "not a tuning record, or damaged"),
    "truncated": (record().dumps()[:200], "not a tuning record, or damaged"),
    "a list": ("[]", "not a tuning record, or damaged"),
    "other json": ('{"format": "x", "content_hash": 1}', "not a tuning record, or damaged"),
    "edited": (record().dumps().replace("1e-06", "1e-09"), "it was altered"),
    "newer": (altered(lambda c: c.update(schema=99)), "its schema is 99, not 1"),
    "foreign": (altered(lambda c: c["workload"].update(m=512)), "of another workload or target"),
    "no workload": (altered(lambda c: c.update(workload={})), "it describes no workload"),
    "odd entry": (
        altered(lambda c: c["kernels"].update(x={"speed": 1})),
        "it describes no workload",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_record_is_ignored_with_one_notice(tmp_path, capsys, kind):
    text, told = DAMAGED[kind]
    path = tmp_path / record().path
    path.parent.mkdir()
    path.write_text(text)
    found = Records.load(TARGET, tmp_path)
    for _ in range(2):
        assert found.config(KERNEL, WORKLOAD) is None
        assert found.kernel(FAMILY, WORKLOAD) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tbn-tvm: notice: {path}: ")
    assert told in line and "tbn-tvm tune MODEL --records DIR" in line


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None], ids=["binary", "a folder"])
def test_what_is_no_text_file_is_ignored(tmp_path, capsys, content):
    path = tmp_path / record().path
    if content is None:
        path.mkdir(parents=True)
    else:
        path.parent.mkdir()
        path.write_bytes(content)
    assert Records.load(TARGET, tmp_path).config(KERNEL, WORKLOAD) is None
    assert "ignored" in capsys.readouterr().err


def test_a_record_of_another_kernel_version_is_ignored_and_replaced(tmp_path, capsys):
    stale = entry(other_config(), seconds=1e-9, version=KERNEL.version + 1)
    store.write(tmp_path, Record(WORKLOAD, identity(TARGET), {KERNEL.name: stale}))
    found = Records.load(TARGET, tmp_path)
    assert found.config(KERNEL, WORKLOAD) is None
    assert found.kernel(FAMILY, WORKLOAD) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert f"version {KERNEL.version + 1} of {KERNEL.name}, now {KERNEL.version}" in line
    store.write(tmp_path, record())
    assert found.config(KERNEL, WORKLOAD)[0] == other_config()


def test_a_configuration_that_the_kernel_does_not_take_is_ignored(tmp_path, capsys):
    store.write(tmp_path, record({**other_config(), "unheard_of": 3}))
    assert Records.load(TARGET, tmp_path).config(KERNEL, WORKLOAD) is None
    assert "does not take the configuration" in capsys.readouterr().err


def test_unusable_text_is_told_from_other_errors():
    with pytest.raises(UnusableError, match="damaged"):
        Record.loads("no json")


# -- two writers -----------------------------------------------------------------------------


def test_of_two_results_for_a_kernel_the_greater_gain_stays(tmp_path):
    good, bad = record(seconds=1e-6), record(KERNEL.default(WORKLOAD), seconds=1.5e-6)
    store.write(tmp_path, good)
    store.write(tmp_path, bad)
    assert store.read(tmp_path, WORKLOAD, identity(TARGET)) == good
    store.write(tmp_path, bad, contended=frozenset({KERNEL.name}))
    assert store.read(tmp_path, WORKLOAD, identity(TARGET)) == bad


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    def write(name):
        made = Record(WORKLOAD, identity(TARGET), {name: entry({})})
        store.write(tmp_path, made)

    names = [f"kernel_{index}" for index in range(12)]
    threads = [threading.Thread(target=write, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(store.read(tmp_path, WORKLOAD, identity(TARGET)).kernels) == sorted(names)


# -- which record counts ---------------------------------------------------------------------


def test_a_named_folder_goes_before_shipped_records_and_those_before_the_default_folder(
    tmp_path, monkeypatch
):
    configs = [config for config in KERNEL.configs(WORKLOAD)][:3]
    places = [tmp_path / name for name in ("named", "shipped", "default")]
    monkeypatch.setenv(records.VARIABLE, str(places[2]))
    assert Records.load(TARGET, places[0]).config(KERNEL, WORKLOAD) is None
    expected = []
    for place, config in reversed(list(zip(places, configs, strict=True))):
        path = store.write(place, record(config))
        expected.append((config, "shipped" if place.name == "shipped" else f"user {path}"))
        assert Records.load(TARGET, places[0]).config(KERNEL, WORKLOAD) == expected[-1]
    # Without a named folder the shipped record is the first.
    assert Records.load(TARGET).config(KERNEL, WORKLOAD) == expected[1]


def test_the_kernel_that_measured_best_is_chosen_if_its_rule_fits(tmp_path):
    fitting = [rule.kernel for rule in FAMILY.rules if rule.fits(WORKLOAD)]
    slow, fast = fitting[0], next(name for name in fitting if name != fitting[0])
    entries = {
        slow: entry({}, seconds=3e-6, version=FAMILY.kernels[slow].version),
        fast: entry({}, seconds=2e-6, version=FAMILY.kernels[fast].version),
        "not_there": entry({}, seconds=1e-6),
    }
    store.write(tmp_path, Record(WORKLOAD, identity(TARGET), entries))
    found = Records.load(TARGET, tmp_path)
    assert found.kernel(FAMILY, WORKLOAD) == fast
    assert found.kernel(FAMILY, WORKLOAD.at_batch(1)) is None


def test_what_only_compares_kernels_has_no_configuration(tmp_path):
    made = entry(None)
    store.write(tmp_path, Record(WORKLOAD, identity(TARGET), {KERNEL.name: made}))
    found = Records.load(TARGET, tmp_path)
    assert found.config(KERNEL, WORKLOAD) is None
    assert found.kernel(FAMILY, WORKLOAD) == KERNEL.name


def test_shipped_records_are_whole_and_of_the_kernels_as_they_are_now():
    kernels = {**cpu.KERNELS, **cuda.KERNELS}
    folder = Path(records.__file__).parent
    for path in folder.glob("*/*.json"):
        found = Record.loads(path.read_text())
        assert folder / found.path == path
        for name, made in found.kernels.items():
            assert made.version == kernels[name].version, f"{path}: tune again, or remove it"
            assert made.ratio <= 1


# -- lowering --------------------------------------------------------------------------------


def layer(batch) -> tvm.IRModule:
    """A dense layer with the workload's shape."""
    geometry = WORKLOAD.product.geometry
    signs = np.random.default_rng(0).choice([-1, 1], geometry.q)
    weight = TiledTensor.from_signs(signs, [0.5, 2.0], (geometry.m, geometry.n))
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((batch, geometry.n), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            call = op.tiled_dense(
                x,
                relax.const(weight.tile),
                relax.const(weight.alphas),
                out_features=geometry.m,
                p=2,
            )
            y = builder.emit_output(builder.emit(call))
        builder.emit_func_output(y)
    return builder.get()


def lowered(batch, found=None) -> list[dict]:
    """The kernels that a layer is lowered to."""
    passes = [*pipeline.simplify(), LowerTiledProducts(TARGET, records=found)]
    return used_kernels(pipeline.run(layer(batch), [("lower", passes)], TARGET))


def test_lowering_takes_configurations_from_records_and_says_so(tmp_path):
    path = store.write(tmp_path, record())
    (row,) = lowered(3, Records.load(TARGET, tmp_path))
    assert (row["kernel"], row["version"]) == (KERNEL.name, KERNEL.version)
    assert row["configs"] == [other_config()]
    assert row["sources"] == [f"user {path}"]
    (row,) = lowered(3)
    assert (row["configs"], row["sources"]) == ([KERNEL.default(WORKLOAD)], ["rules"])
    assert row["input"] == [3, 64]


def test_each_regime_of_a_symbolic_batch_has_its_own_record(tmp_path):
    from tvm import tirx as tir

    symbolic = WORKLOAD.at_batch(None)
    regimes = KERNEL.regimes(symbolic)
    store.write(tmp_path, record(other_config(KERNEL, regimes[-1]), regimes[-1]))
    (row,) = lowered(tir.Var("batch", "int64"), Records.load(TARGET, tmp_path))
    assert len(row["configs"]) == len(regimes)
    assert row["configs"][-1] == other_config(KERNEL, regimes[-1])
    assert [source.split()[0] for source in row["sources"]] == [
        *["rules"] * (len(regimes) - 1),
        "user",
    ]


def test_another_kernel_is_taken_where_it_measured_best(tmp_path):
    fitting = [rule.kernel for rule in FAMILY.rules if rule.fits(WORKLOAD)]
    other = FAMILY.kernels[next(name for name in fitting if name != KERNEL.name)]
    config = other.default(WORKLOAD)
    made = entry(config, version=other.version)
    store.write(tmp_path, Record(WORKLOAD, identity(TARGET), {other.name: made}))
    (row,) = lowered(3, Records.load(TARGET, tmp_path))
    assert (row["kernel"], row["configs"]) == (other.name, [config])
