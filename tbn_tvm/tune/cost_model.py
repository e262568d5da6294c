"""MetaSchedule's XGBoost cost model over the parameters of our templates.

``PerStoreFeature``, the extractor that this model usually has, works on our kernels too, but needs
each candidate's TIR, which takes 0.1 s to instantiate: a third of what measuring it takes. It also
sees neither inside intrinsics nor what is written as inline PTX, where most parameters act. So the
extractor here reads a candidate's parameters, with the numbers of its workload, from its
specification.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule import _ffi_api
from tvm.s_tir.meta_schedule.cost_model.xgb_model import XGBConfig, XGBModel
from tvm.s_tir.meta_schedule.feature_extractor import PyFeatureExtractor

from tbn_tvm.schedules.families import Family
from tbn_tvm.schedules.rules import Workload
from tbn_tvm.tune import worker
from tbn_tvm.tune.measure import Outcome

WARM_UP = 6
"""Measured configurations from which on predictions are asked for."""


@derived_object
class ParameterFeatures(PyFeatureExtractor):
    """A row of numbers a candidate: the kernel, its parameters, and the workload.

    Parameters
    ----------
    columns : dict of (str, str) to int
        A column for each kernel's each parameter.
    """

    def __init__(self, columns: dict[tuple[str, str], int]) -> None:
        super().__init__()
        self.columns = columns

    def extract_from(self, context, candidates) -> list[tvm.runtime.Tensor]:
        """Features of shape (1, columns) for each candidate."""
        return [tvm.runtime.tensor(self._row(candidate)) for candidate in candidates]

    def _row(self, candidate) -> np.ndarray:
        kernel, workload, configs, _ = worker.specified(candidate.sch.mod)
        parameters = np.full(len(self.columns), -1.0)
        for name, value in configs[0].items():
            parameters[self.columns[kernel, name]] = value
        return np.concatenate([parameters, _numbers(workload)])[None]


def _numbers(workload: Workload) -> list[float]:
    product = workload.product
    counts = (workload.batch or 0, product.unique_rows, product.geometry.m, product.geometry.n)
    pixels = math.prod(workload.out_extents) if workload.extents else 1
    return [math.log2(1 + count) for count in (*counts, workload.taps, pixels)]


class _Context(ms.TuneContext):
    """MetaSchedule's context without what its constructor imports: a minute of tensor intrinsics
    that no template uses."""

    def __init__(self, mod: tvm.IRModule, target: tvm.target.Target) -> None:
        self.__init_handle_by_constructor__(
            _ffi_api.TuneContext, mod, target, None, None, "main", 1, -1, None
        )


class CostModel:
    """Predicts which configurations are fast, over all layers of a run together.

    Parameters
    ----------
    target : tvm.target.Target
        What is tuned for.
    family : Family
        Its kernels.
    regimes : sequence of (str, Workload)
        Kernels and regimes that will be asked about.
    seed : int
        Of the model.
    """

    def __init__(
        self,
        target: tvm.target.Target,
        family: Family,
        regimes: Sequence[tuple[str, Workload]],
        seed: int,
    ) -> None:
        names = sorted(
            {(k, name) for k, regime in regimes for name in family.kernels[k].space(regime)}
        )
        self.target = target
        self.model = XGBModel(
            extractor=ParameterFeatures({name: column for column, name in enumerate(names)}),
            config=XGBConfig(max_depth=6, gamma=0.01, seed=seed, nthread=1),
            num_warmup_samples=WARM_UP,
            early_stopping_rounds=20,
        )
        self.known: dict[tuple[str, Workload], int] = {}

    def update(
        self, kernel: str, regime: Workload, configs: list[dict], outcomes: list[Outcome]
    ) -> None:
        """Learn from measured configurations of a kernel and regime."""
        # A failed candidate has no time at all, which the model takes for a very long one.
        results = [
            ms.runner.RunnerResult(None, o.error)
            if o.seconds is None
            else ms.runner.RunnerResult([o.seconds], None)
            for o in outcomes
        ]
        self.model.update(
            self._context(kernel, regime), self._candidates(kernel, regime, configs), results
        )
        measured = sum(o.seconds is not None for o in outcomes)
        self.known[kernel, regime] = self.known.get((kernel, regime), 0) + measured

    def scores(self, kernel: str, regime: Workload, configs: list[dict]) -> np.ndarray | None:
        """Predictions, higher is faster; None before enough of the regime was measured."""
        if self.known.get((kernel, regime), 0) < WARM_UP:
            return None
        return self.model.predict(
            self._context(kernel, regime), self._candidates(kernel, regime, configs)
        )

    def _context(self, kernel: str, regime: Workload) -> ms.TuneContext:
        # Times are compared within a group, and the context's module names it.
        return _Context(worker.specification(kernel, regime, [{}], []), self.target)

    @staticmethod
    def _candidates(kernel: str, regime: Workload, configs: list[dict]) -> list:
        return [
            ms.MeasureCandidate(Schedule(worker.specification(kernel, regime, [config], [])), [])
            for config in configs
        ]
