"""Every configuration a tuner may choose has to give right numbers, not only those of the rules.

There are hundreds a kernel, so a sample is run in which every pair of parameter values occurs that
any valid configuration has, over shapes that fit no block. The shapes are small: what a
configuration means for large ones (registers, shared memory) is in ``test_nvcc.py``.
"""

import pytest

from tbn_tvm.schedules.cuda import KERNELS
from tbn_tvm.schedules.reference import AlphaLayout
from tbn_tvm.testing.products import convolution, covering, dense

LAYER, TILE, ROW, SEGMENT = AlphaLayout

PROBLEMS = {
    "dense_mma-few": [
        dense(134, 328, 2, 5, "float16"),
        dense(53, 211, 1, 8, "bfloat16", LAYER, bias=False),
        dense(50, 70, 5, 1, "float16", ROW),
    ],
    "dense_mma-many": [
        dense(266, 328, 2, 70, "float16"),
        dense(71, 136, 1, 260, "bfloat16", LAYER, bias=False),
        dense(50, 77, 5, 41, "float16", ROW),
        dense(70, 264, 2, 33, "bfloat16"),
    ],
    "dense_wgmma-many": [
        dense(266, 328, 2, 70, "float16"),
        dense(71, 136, 1, 260, "bfloat16", LAYER, bias=False),
        dense(110, 64, 5, 41, "float16", ROW),
    ],
    "dense_simt-few": [dense(134, 333, 2, 5, "float32"), dense(53, 211, 1, 1, "float16", LAYER)],
    "dense_simt-many": [
        dense(266, 72, 2, 70, "float32"),
        dense(131, 53, 1, 200, "bfloat16", LAYER, bias=False),
        dense(48, 33, 4, 41, "float16", ROW),
    ],
    "dense_segments": [
        dense(21, 90, 6, 2, "float32"),
        dense(5, 660, 100, 3, "bfloat16", SEGMENT, bias=False),
        dense(520, 32, 1040, 1, "float16"),
    ],
    "conv_mma": [
        convolution(70, 40, (3, 3), (5, 19), 2, 1, padding=(1, 1)),
        convolution(264, 24, (2, 3), (9, 35), 2, 1, "bfloat16", bias=False),
        convolution(54, 64, (1, 1), (9, 33), 1, 2, alpha=LAYER, groups=2),
        convolution(36, 40, (3, 3), (13, 17), 2, 1, "bfloat16", strides=(2, 1), padding=(1, 1)),
    ],
    "conv_simt": [
        convolution(70, 17, (3, 3), (13, 11), 2, 2, "float32", padding=(1, 1)),
        convolution(36, 6, (3, 3), (9, 9), 9, 1, "float16", bias=False),
        convolution(22, 60, (3,), (37,), 1, 3, "float32", LAYER, groups=2, strides=(2,)),
    ],
}


def cases():
    """Configurations with a problem each, in turns."""
    for name, problems in PROBLEMS.items():
        kernel = KERNELS[name.split("-")[0]]
        wanted = {frozenset(c.items()) for p in problems for c in kernel.configs(p.workload)}
        for number, config in enumerate(covering(map(dict, sorted(map(sorted, wanted))), 16)):
            fitting = [p for p in problems if kernel.valid(p.workload, config)]
            problem = fitting[number % len(fitting)]
            values = "-".join(f"{key}={value}" for key, value in sorted(config.items()))
            yield pytest.param(kernel.name, problem, config, id=f"{name}-{values}")


@pytest.mark.parametrize(("kernel", "problem", "config"), list(cases()))
def test_a_configuration_gives_right_numbers(check, kernel, problem, config):
    check(kernel, problem, configs=(config,))


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_default_is_valid_and_nothing_else_is_offered(name):
    kernel = KERNELS[name.split("-")[0]]
    for problem in PROBLEMS[name]:
        workload = problem.workload
        assert kernel.valid(workload, kernel.default(workload))
        space = kernel.space(workload)
        for config in kernel.configs(workload):
            assert all(config[key] in space[key] for key in space)
