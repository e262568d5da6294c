"""Dense kernels against float64 of the dense expansion: shapes, dtypes, alphas, batches.

The kernels' CUDA source runs thread by thread on the CPU (``tbn_tvm.testing.cuda_emulator``), with
the configurations that the rules give; ``test_configurations.py`` has the others.
"""

import pytest

from tbn_tvm.schedules.reference import AlphaLayout
from tbn_tvm.testing.products import dense

LAYER, TILE, ROW, SEGMENT = AlphaLayout

# m, n, p, alphas, bias
WHOLE_ROWS = [
    (64, 128, 4, TILE, True),
    (130, 77, 2, TILE, True),  # odd rows: nothing is read or written in vectors
    (160, 72, 16, TILE, False),  # more copies than are written out
    (53, 101, 1, LAYER, True),  # primes
    (67, 17, 67, TILE, True),  # a tile is one row
    (2, 211, 2, TILE, False),  # one unique row
    (48, 34, 6, ROW, True),  # alphas after a folded batch norm
]
ONE_ALPHA_A_ROW = [
    # Tiles that end inside rows, but no alpha does.
    (33, 20, 22, LAYER, True),
    (28, 30, 24, ROW, False),
    (12, 64, 48, LAYER, True),  # a row is four tiles
]
INSIDE_ROWS = [
    (4, 64, 16, TILE, True),  # a row is four tiles
    (7, 30, 6, TILE, True),  # a tile is 35 elements, a row 30
    (10, 33, 11, TILE, False),  # a tile is 30 elements, a row 33
    (13, 17, 17, TILE, True),  # primes
    (13, 17, 13 * 17, TILE, True),  # a tile is one element
    (7, 30, 6, SEGMENT, True),
    (6, 50, 4, SEGMENT, False),
    (300, 32, 600, TILE, True),  # many copies of few rows
    (3, 1000, 3000, TILE, True),  # more segments than a block has threads
]
WIDE_ROWS = [(m, n, p, a, b) for m, n, p, a, b in WHOLE_ROWS if n >= 16]

DTYPES = {
    "dense_mma": ("float16", "bfloat16"),
    "dense_wgmma": ("float16", "bfloat16"),
    "dense_simt": ("float32", "float16", "bfloat16"),
    "dense_segments": ("float32", "float16", "bfloat16"),
}
SHAPES = {
    "dense_mma": [shape for shape in WHOLE_ROWS if shape[1] >= 16] + ONE_ALPHA_A_ROW,
    "dense_wgmma": [
        (256, 136, 2, TILE, True),
        (71, 72, 1, LAYER, False),
        (134, 328, 2, ROW, True),
        (160, 64, 16, TILE, True),
        (12, 64, 48, LAYER, True),
    ],
    "dense_simt": WHOLE_ROWS + ONE_ALPHA_A_ROW,
    "dense_segments": INSIDE_ROWS + WHOLE_ROWS[:2],
}


def cases(batches):
    """Every shape of every kernel, with dtypes and batches in turns."""
    for kernel, shapes in SHAPES.items():
        for number, (m, n, p, alpha, bias) in enumerate(shapes):
            dtype = DTYPES[kernel][number % len(DTYPES[kernel])]
            batch = batches[number % len(batches)]
            name = f"{kernel}-{m}x{n}-p={p}-{alpha.name.lower()}-{dtype}-batch={batch}"
            problem = dense(m, n, p, batch, dtype, alpha, bias)
            yield pytest.param(kernel, problem, id=name)


@pytest.mark.parametrize(("kernel", "problem"), list(cases([3, 41])))
def test_shapes(check, kernel, problem):
    check(kernel, problem)


@pytest.mark.parametrize("shape", [0, 1])
@pytest.mark.parametrize("kernel", SHAPES)
def test_any_batch(check, kernel, shape):
    """One function serves every batch; each side of its branches is taken."""
    m, n, p, alpha, bias = SHAPES[kernel][shape]
    problem = dense(m, n, p, None, DTYPES[kernel][shape], alpha, bias)
    check(kernel, problem, 1, 2, 8, 9, 37, 256, 257)


@pytest.mark.parametrize("batch", [1, 5, 8, 9, 100])
@pytest.mark.parametrize("kernel", DTYPES)
def test_a_known_batch(check, kernel, batch):
    dtypes = DTYPES[kernel]
    dtype = dtypes[batch % len(dtypes)]
    check(kernel, dense(66, 72, 2, batch, dtype, bias=batch != 5))


@pytest.mark.parametrize("batch", [1, 40])
@pytest.mark.parametrize("kernel", ["dense_mma", "dense_wgmma", "dense_simt"])
def test_long_rows(check, kernel, batch):
    """Rows that pass through every stage of a pipeline several times, and fill no part of it."""
    dtype = DTYPES[kernel][0]
    check(kernel, dense(36, 2760, 2, batch, dtype))


def test_long_rows_of_several_samples_without_tensor_cores(check):
    """More activations than fit into shared memory at once."""
    check("dense_simt", dense(20, 16391, 2, None, "float32"), 1, 3)
