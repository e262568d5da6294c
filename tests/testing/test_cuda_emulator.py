"""The emulator against NumPy in float64, and that it shows the mistakes it is there for."""

import ml_dtypes
import numpy as np
import pytest
import tvm
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as ir

from tbn_tvm.testing import cuda_emulator
from tbn_tvm.testing.cuda_emulator import EmulationError, Options, Program

pytestmark = pytest.mark.skipif(cuda_emulator.compiler() is None, reason="needs g++")

FLOATS = {"f16": np.dtype("float16"), "bf16": np.dtype(ml_dtypes.bfloat16)}


def random(shape, dtype, seed=0):
    """Normal values, rounded to the dtype."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def run(source, *arrays, grid=1, block=32, shared=0, **options):
    """Launch the one kernel of a source."""
    program = Program(source)
    (name,) = program.bounds
    program.launch(name, grid, block, arrays, shared, Options(**options))


# Products of matrices ----------------------------------------------------------------------------

# One warp multiplies a (16, 16) by b (8, 16) transposed; fragments are read from global memory.
PRODUCT = """
extern "C" __global__ void product(const unsigned* a, const unsigned* b, float* c) {
  int group = threadIdx.x / 4, pair = threadIdx.x % 4;
  float acc[4];
  for (int i = 0; i < 4; ++i) acc[i] = c[(group + 8 * (i / 2)) * 8 + 2 * pair + i % 2];
  tbn_mma_m16n8k16_FORMAT(acc, a[group * 8 + pair], a[(group + 8) * 8 + pair],
                              a[group * 8 + pair + 4], a[(group + 8) * 8 + pair + 4],
                              b[group * 8 + pair], b[group * 8 + pair + 4]);
  for (int i = 0; i < 4; ++i) c[(group + 8 * (i / 2)) * 8 + 2 * pair + i % 2] = acc[i];
}
"""


def product_error(source, dtype):
    """How far the product is from that in float64."""
    a, b, c = random((16, 16), dtype), random((8, 16), dtype, 1), random((16, 8), "float32", 2)
    expected = a.astype("float64") @ b.astype("float64").T + c
    run(source, a.view("uint32"), b.view("uint32"), c)
    return np.abs(c - expected).max()


@pytest.mark.parametrize("name", FLOATS)
def test_mma_multiplies(name):
    assert product_error(PRODUCT.replace("FORMAT", name), FLOATS[name]) < 1e-5


def test_a_swapped_fragment_register_shows():
    swapped = PRODUCT.replace("a[group * 8 + pair + 4]", "a[group * 8 + pair + 5]")
    assert product_error(swapped.replace("FORMAT", "f16"), FLOATS["f16"]) > 0.1


# ldmatrix ----------------------------------------------------------------------------------------

LOAD = """
extern "C" __global__ void load(const unsigned short* matrix, unsigned* out) {
  __shared__ __align__(16) unsigned short tile[256 + 8];
  for (int i = threadIdx.x; i < 256; i += 32) tile[i] = matrix[i];
  __syncwarp();
  tbn_ldmatrix_KIND(out + threadIdx.x * COUNT, tile + OFFSET + threadIdx.x * 8);
}
"""


def load_source(kind, offset=0):
    """A kernel that calls one form of ldmatrix."""
    source = LOAD.replace("KIND", kind).replace("COUNT", kind[1])
    return source.replace("OFFSET", str(offset))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [2, 4])
def test_ldmatrix_distributes_rows(count, transposed):
    matrices = np.arange(256, dtype="uint16").reshape(4, 8, 8)
    out = np.zeros((32, count), "uint32")
    run(load_source(f"x{count}" + "_trans" * transposed), matrices, out)
    for lane in range(32):
        for i in range(count):
            matrix = matrices[i].T if transposed else matrices[i]
            first, second = matrix[lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2]
            assert out[lane, i] == int(first) | int(second) << 16


def test_a_misaligned_row_of_ldmatrix_is_reported():
    with pytest.raises(EmulationError, match=r"tbn_ldmatrix_x4.*multiple of 16"):
        run(load_source("x4", 4), np.zeros(256, "uint16"), np.zeros((32, 4), "uint32"))


# cp.async ----------------------------------------------------------------------------------------

COPY = """
extern "C" __global__ void copy(const float4* from, float4* to, int bytes) {
  extern __shared__ float4 stage[];
  for (int step = 0; step < 2; ++step) {
    tbn_cp_async16(stage + step * 32 + threadIdx.x, from + step * 32 + threadIdx.x, bytes);
    tbn_cp_async_commit();
  }
  WAIT
  __syncthreads();
  for (int step = 0; step < 2; ++step) {
    to[step * 32 + threadIdx.x] = stage[step * 32 + (threadIdx.x + 7) % 32];
  }
}
"""


def copied(wait, size=16, **options):
    """What arrives of 2 groups of 32 vectors, and what is sent."""
    sent, arrived = random((2, 32, 4), "float32"), np.zeros((2, 32, 4), "float32")
    run(COPY.replace("WAIT", wait), sent, arrived, size, shared=1024, **options)
    return np.roll(arrived, 7, axis=1), sent


def test_cp_async_lands_with_the_wait():
    arrived, sent = copied("tbn_cp_async_wait(0);")
    np.testing.assert_array_equal(arrived, sent)


def test_cp_async_fills_with_zeros():
    arrived, sent = copied("tbn_cp_async_wait(0);", 8)
    np.testing.assert_array_equal(arrived[..., :2], sent[..., :2])
    assert not arrived[..., 2:].any()


def test_a_wait_that_leaves_a_group_pending_shows():
    arrived, sent = copied("tbn_cp_async_wait(1);")
    np.testing.assert_array_equal(arrived[0], sent[0])
    assert np.isnan(arrived[1]).all()


def test_a_missing_wait_shows():
    assert np.isnan(copied("")[0]).all()
    assert not np.isnan(copied("", early_copies=True)[0]).any()


# Barriers and warps ------------------------------------------------------------------------------

REVERSE = """
extern "C" __global__ void reverse(float* data) {
  __shared__ float stage[128];
  for (int round = 0; round < 3; ++round) {
    stage[threadIdx.x] = data[blockIdx.x * 128 + threadIdx.x];
    FIRST
    data[blockIdx.x * 128 + threadIdx.x] = stage[127 - threadIdx.x] + round;
    SECOND
  }
}
"""


def reversed_error(first="__syncthreads();", second="__syncthreads();", **options):
    """How far three reversals that add 0, 1 and 2 are from what they should be."""
    data = random((3, 128), "float32")
    expected = data[:, ::-1] + np.float32(3)
    source = REVERSE.replace("FIRST", first).replace("SECOND", second)
    run(source, data, grid=3, block=128, **options)
    return np.abs(data - expected).max()


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
def test_barriers_order_threads(order):
    assert reversed_error(order=order) < 1e-6


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_a_missing_barrier_before_reading_shows(order):
    assert not reversed_error(first="", order=order) < 0.1


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_a_missing_barrier_before_writing_again_shows(order):
    assert not reversed_error(second="", order=order) < 0.1


def test_a_deadlock_is_reported_with_its_line():
    with pytest.raises(
        EmulationError, match=r"deadlock: 64 threads.*__syncthreads, line 6"
    ) as info:
        reversed_error(first="if (threadIdx.x < 64) __syncthreads();", second="")
    assert "if (threadIdx.x < 64) __syncthreads();" in str(info.value)


def test_threads_of_a_warp_at_two_barriers_are_reported():
    with pytest.raises(EmulationError, match="one warp wait at lines"):
        reversed_error(
            first="if (threadIdx.x % 2) {\n__syncthreads();\n} else {\n__syncthreads();\n}"
        )


WARP = """
extern "C" __global__ void warp(const int* in, int* out) {
  int lane = threadIdx.x % 32, value = in[threadIdx.x];
  int* row = out + threadIdx.x * 8;
  row[0] = __shfl_sync(0xffffffffu, value, lane + 3);
  row[1] = __shfl_xor_sync(0xffffffffu, value, 5);
  row[2] = __shfl_down_sync(0xffffffffu, value, 4, 16);
  row[3] = __shfl_up_sync(0xffffffffu, value, 2, 8);
  row[4] = __ballot_sync(0xffffffffu, value & 1);
  if (lane < 16) {
    row[5] = __shfl_sync(0x0000ffffu, value, 0);
  } else {
    row[5] = __shfl_sync(0xffff0000u, value, 31);
  }
  __syncwarp();
  row[6] = __reduce_add_sync(0xffffffffu, value);
  row[7] = __any_sync(0xffffffffu, value == 7) + 2 * __all_sync(0xffffffffu, value >= 0);
}
"""


def test_warp_collectives():
    values = np.random.default_rng(0).integers(0, 100, 64).astype("int32")
    out = np.zeros((64, 8), "int32")
    run(WARP, values, out, block=64)
    lane = np.arange(32)
    for warp in range(2):
        given, got = values[32 * warp :][:32], out[32 * warp :][:32].T
        np.testing.assert_array_equal(got[0], given[(lane + 3) % 32])
        np.testing.assert_array_equal(got[1], given[lane ^ 5])
        np.testing.assert_array_equal(got[2], given[np.where(lane % 16 < 12, lane + 4, lane) % 32])
        np.testing.assert_array_equal(got[3], given[np.where(lane % 8 >= 2, lane - 2, lane)])
        votes = np.sum((given & 1).astype("uint32") << lane.astype("uint32"), dtype="uint32")
        np.testing.assert_array_equal(got[4].view("uint32"), votes)
        np.testing.assert_array_equal(got[5], given[np.where(lane < 16, 0, 31)])
        np.testing.assert_array_equal(got[6], given.sum())
        np.testing.assert_array_equal(got[7], int(7 in given) + 2)


def test_a_lane_that_stays_away_from_a_shuffle_is_reported():
    source = WARP.replace("  row[1]", "  if (lane == 9) return;\n  row[1]")
    with pytest.raises(EmulationError, match=r"deadlock.*__shfl_xor_sync"):
        run(source, np.zeros(64, "int32"), np.zeros((64, 8), "int32"), block=64)


NAMED = """
extern "C" __global__ void named(float* data) {
  __shared__ float stage[64];
  __shared__ unsigned count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  if (threadIdx.x < 64) {  // the first pair of warps writes and goes on
    stage[threadIdx.x] = data[threadIdx.x];
    tbn_barrier_arrive(1, 128);
    atomicAdd(&count, 1u);
  } else {  // the second waits for it
    WAIT
    data[threadIdx.x] = stage[127 - threadIdx.x];
  }
  int large = __syncthreads_count(data[threadIdx.x] > 0);
  if (threadIdx.x == 0) {
    data[128] = large;
    data[129] = count;
  }
}
"""


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_named_barriers_and_atomics(order):
    data = random(130, "float32")
    first = data[:64].copy()
    run(NAMED.replace("WAIT", "tbn_barrier_sync(1, 128);"), data, block=128, order=order)
    np.testing.assert_array_equal(data[64:128], first[::-1])
    assert data[128] == (data[:128] > 0).sum()
    assert data[129] == 64


def test_a_named_barrier_with_another_count_is_reported():
    with pytest.raises(EmulationError, match="barrier 1: 128 threads here, 64"):
        run(NAMED.replace("WAIT", "tbn_barrier_sync(1, 64);"), random(130, "float32"), block=128)


# Addresses and limits ----------------------------------------------------------------------------

TOUCH = """
extern "C" __global__ void touch(float* data, int index) {
  float own[4] = {};
  __shared__ float stage[8];
  STATEMENT
  data[0] += own[index & 3] + stage[index & 7];
}
"""


@pytest.mark.parametrize(
    ("statement", "index", "message"),
    [
        ("data[index] = 1;", 64, "outside of any array.*line 5"),
        ("data[index] = 1;", -4096, "outside of any array.*line 5"),
        ("data[index & 63] = data[index];", 4096, "outside of any array.*line 5"),
        ("*(float4*)(data + index) = make_float4(0, 0, 0, 0);", 2, "misaligned.*line 5"),
        ("own[index] = 1;", 4, "out of bounds.*line 5"),
        ("stage[index] = 1;", 8, "out of bounds.*line 5"),
        ("data[0] = 5 / index;", 0, "division by zero, line 5"),
        ("data[0] = 1 << index;", 32, "shift by 32 bits, line 5"),
    ],
)
def test_a_bad_access_is_reported_with_its_line(statement, index, message):
    source = TOUCH.replace("STATEMENT", statement)
    with pytest.raises(EmulationError, match=message):
        program = Program(source)
        program.launch("touch", 1, 1, [np.zeros(64, "float32"), index])


def test_writing_just_past_an_array_is_reported():
    program = Program(TOUCH.replace("STATEMENT", "data[index] = 1;"))
    with pytest.raises(
        IndexError, match="argument 0 of touch has 244 bytes, and a kernel wrote byte 248"
    ):
        program.launch("touch", 1, 1, [np.zeros(61, "float32"), 62])


def test_launches_past_the_limits_are_refused():
    program = Program(TOUCH.replace("STATEMENT", ""))
    arguments = [np.zeros(64, "float32"), 0]
    with pytest.raises(EmulationError, match="1024 threads in a block: 1056"):
        program.launch("touch", 1, (33, 32), arguments)
    with pytest.raises(EmulationError, match="232448 bytes of shared memory: 232480"):
        program.launch("touch", 1, 1, arguments, dynamic_shared=232448)
    with pytest.raises(EmulationError, match="size zero"):
        program.launch("touch", 0, 1, arguments)
    bounded = Program(program.source.replace("void touch", "void __launch_bounds__(64) touch"))
    with pytest.raises(EmulationError, match="128 threads, compiled for 64"):
        bounded.launch("touch", 1, 128, arguments)


# What TVM emits ----------------------------------------------------------------------------------


@T.prim_func(s_tir=True)
def scale_rows(x: T.handle, y: T.handle):
    """y = 2 x reversed along rows, in float32; one block a row, any number of rows."""
    T.func_attr({"global_symbol": "scale_rows", "tirx.noalias": True})
    n = T.int64()
    X = T.match_buffer(x, (n, 64), "float16")
    Y = T.match_buffer(y, (n, 64), "float32")
    for row in T.thread_binding(n, thread="blockIdx.x"):
        for lane in T.thread_binding(32, thread="threadIdx.x"):
            with T.sblock("row"):
                stage = T.sblock_alloc_buffer((64,), "float16", scope="shared.dyn")
                for v in T.vectorized(2):
                    stage[lane * 2 + v] = X[row, lane * 2 + v] * T.float16(2)
                T.tvm_storage_sync("shared")
                for v in T.vectorized(2):
                    Y[row, lane * 2 + v] = T.Cast("float32", stage[63 - lane * 2 - v])


@pytest.mark.parametrize("rows", [1, 7])
def test_host_code_launches_what_the_shapes_ask_for(rows):
    x, y = random((rows, 64), "float16"), np.zeros((rows, 64), "float32")
    launches = cuda_emulator.run(scale_rows, [x, y])
    assert launches == [("scale_rows_kernel", [rows, 1, 1, 32, 1, 1], 128)]
    np.testing.assert_array_equal(y, 2 * x[:, ::-1].astype("float32"))


def test_host_code_checks_its_arguments():
    with pytest.raises(ValueError, match=r"Y.shape\[0\]"):
        cuda_emulator.run(scale_rows, [np.zeros((2, 64), "float16"), np.zeros((3, 64), "float32")])


@T.prim_func(s_tir=True)
def two_steps(x: T.handle, y: T.handle):
    """y = 4 x with rows reversed, in two kernels with scratch between them."""
    T.func_attr({"global_symbol": "two_steps", "tirx.noalias": True})
    n = T.int64()
    X = T.match_buffer(x, (n, 64), "float32")
    Y = T.match_buffer(y, (n, 64), "float32")
    doubled = T.alloc_buffer((n, 64), "float32")
    for row in T.thread_binding(n, thread="blockIdx.x"):
        for column in T.thread_binding(64, thread="threadIdx.x"):
            doubled[row, column] = X[row, column] * T.float32(2)
    for row in T.thread_binding(n, thread="blockIdx.x"):
        for column in T.thread_binding(64, thread="threadIdx.x"):
            Y[row, column] = doubled[row, 63 - column] * T.float32(2)


def test_modules_have_several_functions_and_launches_with_scratch():
    module = cuda_emulator.Emulated(
        tvm.IRModule({"two_steps": two_steps, "scale_rows": scale_rows})
    )
    x, y = random((5, 64), "float32"), np.zeros((5, 64), "float32")
    launches = module(x, y, entry="two_steps")
    assert [extents for _, extents, _ in launches] == 2 * [[5, 1, 1, 64, 1, 1]]
    np.testing.assert_array_equal(y, 4 * x[:, ::-1])
    halves = x.astype("float16")
    module(halves, y, entry="scale_rows")
    np.testing.assert_array_equal(y, 2 * halves[:, ::-1].astype("float32"))
    with pytest.raises(ValueError, match="entry must be one of"):
        module(x, y)


FUNCTIONS = {
    "exp": (T.exp, np.exp),
    "tanh": (T.tanh, np.tanh),
    "sqrt": (T.sqrt, np.sqrt),
    "sigmoid": (T.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
    "floor": (T.floor, np.floor),
    "square": (lambda x: x * x, np.square),
    "negative": (lambda x: -x, np.negative),
    "maximum": (lambda x: T.max(x, -x), np.abs),
}


def elementwise(width, dtype):
    """A kernel ``(x, y)`` that writes every function of 64 vectors into a row of y."""
    size = 64 * width
    with IRBuilder() as builder, ir.prim_func(s_tir=True):
        ir.func_name(f"width_{width}")
        x = ir.arg("x", ir.buffer((size,), dtype))
        y = ir.arg("y", ir.buffer((len(FUNCTIONS), size), dtype))
        with (
            ir.thread_binding(0, 2, "blockIdx.x") as block,
            ir.thread_binding(0, 32, "threadIdx.x") as thread,
        ):
            for row, (function, _) in enumerate(FUNCTIONS.values()):
                with ir.vectorized(width) as lane:
                    at = (block * 32 + thread) * width + lane
                    ir.buffer_store(y, function(x[at]), [row, at])
    return builder.get().with_attr("global_symbol", f"width_{width}")


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2), ("float32", 1e-6)]
)
def test_emitted_arithmetic_of_every_float_and_width(dtype, tolerance):
    widths = (1, 2, 4) if dtype == "float32" else (1, 2, 4, 8)
    kernels = {f"width_{width}": elementwise(width, dtype) for width in widths}
    module = cuda_emulator.Emulated(tvm.IRModule(kernels))
    numpy_dtype = FLOATS["bf16"] if dtype == "bfloat16" else np.dtype(dtype)
    for width in widths:
        x = np.random.default_rng(0).uniform(0.2, 3, 64 * width).astype(numpy_dtype)
        y = np.zeros((len(FUNCTIONS), x.size), numpy_dtype)
        module(x, y, entry=f"width_{width}")
        expected = [reference(x.astype("float64")) for _, reference in FUNCTIONS.values()]
        np.testing.assert_allclose(y.astype("float64"), expected, rtol=tolerance)


CONVERT = """
extern "C" __global__ void convert(const float* in, const double* wide, half* h, nv_bfloat16* b,
                                   half* from_double, float* decoded, int count) {
  for (int i = blockIdx.x * 128 + threadIdx.x; i < count; i += 128 * gridDim.x) {
    h[i] = __float2half_rn(in[i]);
    b[i] = __float2bfloat16_rn(in[i]);
    from_double[i] = half(wide[i]);
    unsigned short bits = i;
    decoded[i] = i < 65536 ? (float)__ushort_as_half(bits) : 0.0f;
  }
}
"""


def test_conversions_round_to_nearest_even():
    rng = np.random.default_rng(0)
    # Every half, the middles between them, and all magnitudes.
    halves = np.arange(0x7C00, dtype="uint16").view("float16").astype("float32")
    middles = (halves[1:] + halves[:-1]) / 2
    wild = rng.integers(0, 0xFF800000, 50000, dtype="uint32").view("float32")
    wild = wild[~np.isnan(wild)]
    values = np.concatenate([halves, middles, np.nextafter(middles, np.float32(9e9)), wild])
    wide = values.astype("float64")
    wide[: middles.size] = middles.astype("float64") * (1 + 2**-40)  # just past the middle
    outputs = [np.zeros(values.shape, d) for d in ("float16", FLOATS["bf16"], "float16", "float32")]
    run(CONVERT, values, wide, *outputs, values.size, grid=4, block=128)
    half, brain, from_double, decoded = outputs
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(half, values.astype("float16"))
        np.testing.assert_array_equal(from_double, wide.astype("float16"))
        np.testing.assert_array_equal(
            brain.astype("float32"), values.astype(FLOATS["bf16"]).astype("float32")
        )
    every = np.arange(65536).astype("uint16").view("float16").astype("float32")
    np.testing.assert_array_equal(decoded[:65536], every)
