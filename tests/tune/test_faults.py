"""Candidates that fail in every way there is: a run goes past them and records what is right."""

import os
import sys

import cloudpickle
import numpy as np
import pytest
import tvm
from tvm import te
from tvm import tirx as tir

from tbn_tvm.schedules.families import Family
from tbn_tvm.schedules.kernel import Kernel
from tbn_tvm.schedules.layouts import sign_rows
from tbn_tvm.schedules.records import Records, store
from tbn_tvm.schedules.reference import SCHEDULED, Product
from tbn_tvm.schedules.rules import DENSE, Rule, Workload
from tbn_tvm.tiling import Geometry
from tbn_tvm.tune.measure import Bench
from tbn_tvm.tune.problems import Problem
from tbn_tvm.tune.session import Session
from tbn_tvm.tune.settle import settle

# Workers cannot import a test: it travels with the candidates.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

GOOD, WRONG, CRASH, HANG, MEMORY, RAISES, DIES = range(7)
WORKLOAD = Workload(DENSE, Product(Geometry(16, 32, 256), 2), 2, "float32")


class Faulty(Kernel):
    """Dot products, spoilt as its parameter says."""

    name = "faulty"

    def space(self, workload):
        return {"fault": (GOOD, WRONG, CRASH, HANG, MEMORY, RAISES, DIES)}

    def layout(self, tile, workload, configs):
        (signs,) = sign_rows(tile, workload.product)
        return np.where(signs, 1, -1).astype("float32")

    def prim_func(self, workload, configs):
        fault, rows, n = configs[0]["fault"], workload.product.unique_rows, WORKLOAD.channels
        if fault == RAISES:
            raise ValueError("no such template")
        if fault == DIES:
            os._exit(9)
        x = te.placeholder((workload.batch, n), "float32", "x")
        words = te.placeholder((rows, n), "float32", "words")
        k = te.reduce_axis((0, n), "k")
        shape = (workload.batch, rows, 1)
        if fault == WRONG:
            dots = te.compute(shape, lambda b, r, s: x[b, r])
        elif fault == CRASH:
            dots = te.compute(shape, lambda b, r, s: tir.call_extern("float32", "abort"))
        elif fault == HANG:
            forever = te.reduce_axis((0, 1 << 50), "forever")
            dots = te.compute(shape, lambda b, r, s: te.sum(x[b, forever % n], axis=forever))
        elif fault == MEMORY:
            huge = te.compute((1 << 45,), lambda i: x[0, i % n])
            dots = te.compute(shape, lambda b, r, s: huge[b * (1 << 44) + r])
        else:
            dots = te.compute(shape, lambda b, r, s: te.sum(x[b, k] * words[r, k], axis=k))
        func = te.create_prim_func([x, words, dots])
        return func.without_attr("global_symbol").with_attr(SCHEDULED, True)


def test_no_candidate_ends_a_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(store, "_told", set())
    target = tvm.target.Target("llvm")
    rules = (Rule("faulty", (DENSE,)),)
    family = Family("cpu", rules, {"faulty": Faulty()}, frozenset(), False)
    problem = Problem(WORKLOAD, (0,), ("faulty",))
    with Bench(target, family, timeout=3) as bench:
        session = Session([problem], target, family, bench, tmp_path, trials=100)
        session.search()
        (search,) = session.searches.values()
        errors = {dict(config)["fault"]: trial.error for config, trial in search.trials.items()}
        assert sorted(errors) == list(range(7))
        assert errors[GOOD] is None and errors[WRONG] is None
        assert "Timeout, killed after 3" in errors[HANG]
        assert errors[RAISES] == "ValueError: no such template"
        assert all(errors[fault] for fault in (CRASH, MEMORY, DIES))
        # A wrong result is not recorded however fast it is.
        fast = search.trials[(("fault", WRONG),)]
        good = search.trials[(("fault", GOOD),)]
        object.__setattr__(fast, "seconds", good.seconds / 2)
        monkeypatch.setattr("tbn_tvm.tune.settle.MARGIN", 1e9)
        (settled,) = settle(session, rounds=1)
    assert (settled.config, settled.improved) == ({"fault": GOOD}, False)
    assert "is fast but wrong" in capsys.readouterr().err
    assert Records.load(target, tmp_path).config(Faulty(), WORKLOAD)[0] == {"fault": GOOD}
    # The next run takes all that from the log.
    with Bench(target, family, timeout=3) as bench:
        session = Session([problem], target, family, bench, tmp_path, trials=100)
        (search,) = session.searches.values()
        assert session.resumed == 7
        assert search.trials[(("fault", WRONG),)].error.startswith("wrong: outputs differ")
        monkeypatch.setattr(bench, "build", lambda mods: pytest.fail("measured again"))
        session.search()
