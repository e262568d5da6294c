"""What tests of GPU kernels share."""

from functools import partial

import pytest

from tbn_tvm.schedules.cuda import KERNELS
from tbn_tvm.testing import cuda_emulator
from tbn_tvm.testing.cuda_emulator import Emulated, Options

# What a GPU may do as well: other threads first, and copies that land at once.
ELSEWISE = Options(order="shuffled", seed=1, early_copies=True)


@pytest.fixture(scope="session")
def check():
    """Emulate a kernel on a problem, in two orders of events, and compare with float64."""
    if cuda_emulator.compiler() is None:
        pytest.skip("the emulator needs g++")

    def checked(kernel, problem, *batches, configs=None):
        function, words = problem.function(KERNELS[kernel], configs)
        emulated = Emulated(function)
        for batch in batches or (problem.workload.batch,):
            problem.check(emulated, words, batch)
            problem.check(partial(emulated, options=ELSEWISE), words, batch)

    return checked
