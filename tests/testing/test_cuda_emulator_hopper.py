"""mbarriers, the copy engine and warpgroup products of the emulator, and their misuse."""

import ml_dtypes
import numpy as np
import pytest
from tvm.script import tirx as T

from tbn_tvm.testing import cuda_emulator
from tbn_tvm.testing.cuda_emulator import EmulationError, Options, Program, TensorMap

pytestmark = pytest.mark.skipif(cuda_emulator.compiler() is None, reason="needs g++")

FLOATS = {"f16": np.dtype("float16"), "bf16": np.dtype(ml_dtypes.bfloat16)}


def random(shape, dtype, seed=0):
    """Normal values, rounded to the dtype."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def run(source, *arguments, block=128, shared=0, **options):
    """Launch the one kernel of a source, one block of it."""
    program = Program(source)
    (name,) = program.bounds
    program.launch(name, 1, block, arguments, shared, Options(**options))


# The copy engine ---------------------------------------------------------------------------------

# Thread 128 loads boxes of 8 rows of 64 into a ring of two stages, threads 0 to 127 copy them out.
PIPELINE = """
extern "C" __global__ void pipeline(const __grid_constant__ CUtensorMap map, half* out, int steps,
                                    int column) {
  extern __shared__ __align__(1024) half stages[];
  __shared__ __align__(1024) unsigned long long barriers[128];
  unsigned long long *full = barriers, *empty = barriers + 2;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      tbn_mbarrier_init(full + i, 1);
      tbn_mbarrier_init(empty + i, 128);
    }
    tbn_fence_barrier_init();
  }
  __syncthreads();
  for (int step = 0; step < steps; ++step) {
    int stage = step & 1, round = step >> 1;
    if (threadIdx.x == 128) {
      EMPTY
      tbn_mbarrier_expect_tx(full + stage, BYTES);
      tbn_tma_load_2d(stages + stage * 512, &map, column, step * 8, full + stage);
    } else if (threadIdx.x < 128) {
      FULL
      for (int i = threadIdx.x; i < 512; i += 128) out[step * 512 + i] = stages[stage * 512 + i];
      tbn_mbarrier_arrive(empty + stage);
    }
  }
}
"""
EMPTY = "tbn_mbarrier_wait(empty + stage, (round & 1) ^ 1);"
FULL = "tbn_mbarrier_wait(full + stage, round & 1);"


def piped(empty=EMPTY, full=FULL, size=1024, rows=48, steps=6, column=0, swizzle=False, **options):
    """What comes through the pipeline, and the matrix it comes from."""
    matrix = random((rows, 64), "float16")
    out = np.full((8 * steps, 64), 7, "float16")
    source = PIPELINE.replace("EMPTY", empty).replace("FULL", full).replace("BYTES", str(size))
    arguments = [TensorMap(matrix, (64, 8), swizzle), out, steps, column]
    run(source, *arguments, block=160, shared=2048, **options)
    return out, matrix


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
def test_the_copy_engine_and_barriers_pipeline(order, early):
    out, matrix = piped(order=order, early_copies=early)
    np.testing.assert_array_equal(out, matrix)


def test_boxes_past_the_matrix_are_zeros():
    out, matrix = piped(rows=41, column=16)
    np.testing.assert_array_equal(out[:41, :48], matrix[:, 16:])
    assert not out[41:].any() and not out[:, 48:].any()


def test_the_swizzle_exchanges_chunks_with_rows():
    out, matrix = piped(swizzle=True)
    chunks, rows = np.arange(8), np.arange(48)
    expected = matrix.reshape(48, 8, 8)[rows[:, None], chunks ^ rows[:, None] % 8]
    np.testing.assert_array_equal(out.reshape(48, 8, 8), expected)


def test_a_missing_wait_for_data_shows():
    out, _ = piped(empty="", full="", steps=2)
    assert np.isnan(out).all()


def test_a_missing_wait_for_space_shows():
    with pytest.raises(EmulationError, match="deadlock"):
        piped(empty="", early_copies=True)


def test_a_wrong_parity_shows():
    out, _ = piped(empty="", full=FULL.replace("round & 1", "(round & 1) ^ 1"), steps=2)
    assert np.isnan(out).all()
    with pytest.raises(EmulationError, match=r"deadlock.*tbn_mbarrier_wait for parity 0"):
        piped(empty=EMPTY.replace(" ^ 1", ""))


def test_a_wrong_number_of_bytes_is_a_deadlock():
    with pytest.raises(EmulationError, match="deadlock"):
        piped(size=2048)


def test_a_barrier_that_nobody_initialised_is_reported():
    source = PIPELINE.replace("tbn_mbarrier_init(full", "// (full")
    source = source.replace("EMPTY", EMPTY).replace("FULL", FULL).replace("BYTES", "1024")
    arguments = [TensorMap(random((48, 64), "float16"), (64, 8)), np.zeros(3072, "float16"), 6, 0]
    with pytest.raises(EmulationError, match="not initialised"):
        run(source, *arguments, block=160, shared=2048)


@T.prim_func
def load_box(x: T.handle, y: T.handle):
    """Every block loads 8 rows through the copy engine; the host encodes the map."""
    T.func_attr({"global_symbol": "load_box", "tirx.noalias": True})
    n = T.int64()
    X = T.match_buffer(x, (n, 64), "float16")
    Y = T.match_buffer(y, (n, 64), "float16")
    tensor_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
    T.evaluate(
        T.tensormap_encode_tiled(
            *(tensor_map, X.data, T.int64(64), n, T.int64(128), 64, 8, 1, 1),
            descriptor_dtype="float16",
            rank=2,
        )
    )
    for block in T.thread_binding(n // 8, thread="blockIdx.x"):
        for thread in T.thread_binding(64, thread="threadIdx.x"):
            # The row past the box is the barrier.
            stage = T.alloc_buffer((9, 64), "float16", scope="shared.dyn")
            if thread == 0:
                T.evaluate(T.call_extern("void", "tbn_mbarrier_init", T.address_of(stage[8, 0]), 1))
                T.evaluate(
                    T.call_extern("void", "tbn_mbarrier_expect_tx", T.address_of(stage[8, 0]), 1024)
                )
                T.evaluate(
                    T.call_extern(
                        *("void", "tbn_tma_load_2d", stage.data, T.address_of(tensor_map)),
                        *(0, T.cast(block, "int32") * 8, T.address_of(stage[8, 0])),
                    )
                )
            T.tvm_storage_sync("shared")
            T.evaluate(T.call_extern("void", "tbn_mbarrier_wait", T.address_of(stage[8, 0]), 0))
            for row in range(8):
                Y[block * 8 + row, thread] = stage[row, thread]


def test_host_code_encodes_tensor_maps():
    x, y = random((24, 64), "float16"), np.zeros((24, 64), "float16")
    cuda_emulator.run(load_box, [x, y])
    np.testing.assert_array_equal(y, x)


# Warpgroup products ------------------------------------------------------------------------------

# acc (64, N) += a (64, 64) * b (N, 64) transposed, 16 columns at a time, b from shared memory.
PRODUCT = """
extern "C" __global__ void product(const unsigned* a, const uint4* b, float* c) {
  extern __shared__ __align__(1024) uint4 tile[];
  int lane = threadIdx.x % 32, pair = lane % 4, row = threadIdx.x / 32 * 16 + lane / 4;
  for (int i = threadIdx.x; i < N * 8; i += 128) {
    int r = i / 8, chunk = i % 8;
    tile[PLACE] = b[i];
  }
  float acc[N / 2];
  for (int i = 0; i < N / 2; ++i) {
    acc[i] = c[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + pair * 2 + i % 2];
  }
  tbn_fence_proxy_async();
  __syncthreads();
  FENCE
  for (int k = 0; k < 4; ++k) {
    const unsigned *top = a + row * 32 + k * 8, *bottom = top + 8 * 32;
    unsigned long long descriptor = tbn_smem_descriptor(DESCRIPTOR);
    tbn_wgmma_m64nNk16_TYPE(acc, top[pair], bottom[pair], top[pair + 4], bottom[pair + 4],
                            descriptor);
  }
  tbn_wgmma_commit();
  WAIT
  for (int i = 0; i < N / 2; ++i) {
    c[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + pair * 2 + i % 2] = acc[i];
  }
}
"""
# Where chunk `chunk` of row `r` lies, in units of 16 bytes, and the matching descriptor.
PLAIN = ("(chunk * (N / 8) + r / 8) * 8 + r % 8", "tile + k * 2 * N, N * 16, 128, 0")
SWIZZLED = ("r * 8 + (chunk ^ (r % 8))", "tile + k * 2, 0, 1024, 1")


def product_error(
    kind="f16", columns=64, layout=SWIZZLED, fence="tbn_wgmma_fence();", wait=True, **options
):
    """How far the product is from that in float64."""
    dtype = FLOATS[kind]
    a, b = random((64, 64), dtype), random((columns, 64), dtype, 1)
    c = random((64, columns), "float32", 2)
    expected = a.astype("float64") @ b.astype("float64").T + c
    source = PRODUCT.replace("PLACE", layout[0]).replace("DESCRIPTOR", layout[1])
    source = source.replace("FENCE", fence).replace("WAIT", "tbn_wgmma_wait(0);" * wait)
    source = source.replace("nNk", f"n{columns}k").replace("TYPE", kind)
    source = f"#define N {columns}\n{source}"
    run(source, a.view("uint32"), b, c, shared=columns * 128, **options)
    return np.abs(c - expected).max()


@pytest.mark.parametrize("columns", [8, 64, 256])
@pytest.mark.parametrize("layout", [PLAIN, SWIZZLED], ids=["plain", "swizzled"])
def test_wgmma_multiplies(columns, layout):
    assert product_error(columns=columns, layout=layout) < 1e-4


def test_wgmma_multiplies_bfloat16_in_any_order():
    assert product_error("bf16", early_copies=True) < 1e-4
    assert product_error("bf16", order="shuffled") < 1e-4


def test_a_missing_wgmma_wait_shows():
    assert product_error(wait=False) > 0.1


def test_a_missing_wgmma_fence_is_reported():
    with pytest.raises(EmulationError, match="no tbn_wgmma_fence"):
        product_error(fence="")


def test_a_wrong_stride_or_swizzle_shows():
    place, descriptor = SWIZZLED
    assert not product_error(layout=(place, descriptor.replace("1024", "512"))) < 0.1
    assert product_error(layout=("r * 8 + chunk", descriptor)) > 0.1


def test_swizzled_rows_that_start_inside_the_pattern_are_reported():
    place, descriptor = SWIZZLED
    with pytest.raises(EmulationError, match="not in the first row"):
        product_error(layout=(place, descriptor.replace("tile +", "tile + 8 +")))


def test_a_descriptor_past_shared_memory_is_reported():
    place, descriptor = SWIZZLED
    with pytest.raises(EmulationError, match="past the end of shared memory"):
        product_error(layout=(place, descriptor.replace("1024", "2048")))


def test_a_warp_that_leaves_the_warpgroup_alone_is_a_deadlock():
    with pytest.raises(EmulationError, match=r"deadlock: 96 threads.*other warps"):
        product_error(fence="if (threadIdx.x < 32) return;\n tbn_wgmma_fence();")
