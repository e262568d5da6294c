"""Hardware instructions as device functions that templates call.

Each comes with its CUDA source, which TVM puts in front of the kernels that call it. The guard
``TBN_EMULATED`` leaves the names to ``tbn_tvm.testing.cuda_emulator``, which runs the emitted
source on a CPU: there the same functions are written out after the PTX ISA's fragment layouts.
"""

from __future__ import annotations

from tvm.backend.cuda.op import cuda_func_call
from tvm.script.ir_builder import tirx as T

_GUARD = "#ifndef TBN_EMULATED\n{}\n#endif\n"

_MMA = """
__device__ __forceinline__ void tbn_mma_m16n8k16_{name}(
    float* acc, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {{
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.{ptx}.{ptx}.f32 "
      "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}}
"""

_CP_ASYNC = """
__device__ __forceinline__ void tbn_cp_async16(void* shared, const void* global, int bytes) {
  unsigned address = (unsigned)__cvta_generic_to_shared(shared);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"(address), "l"(global), "r"(bytes) : "memory");
}
"""

_CP_ASYNC_COMMIT = """
__device__ __forceinline__ void tbn_cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
"""

# The instruction takes an immediate: the compiler keeps the one branch that a constant leads to.
_CP_ASYNC_WAIT = """
__device__ __forceinline__ void tbn_cp_async_wait(int pending) {
  switch (pending) {
    case 0: asm volatile("cp.async.wait_group 0;" ::: "memory"); break;
    case 1: asm volatile("cp.async.wait_group 1;" ::: "memory"); break;
    case 2: asm volatile("cp.async.wait_group 2;" ::: "memory"); break;
    case 3: asm volatile("cp.async.wait_group 3;" ::: "memory"); break;
    default: asm volatile("cp.async.wait_group 4;" ::: "memory"); break;
  }
}
"""

_LOAD128 = """
__device__ __forceinline__ void tbn_load128(unsigned* out, const void* from) {
  uint4 value = *reinterpret_cast<const uint4*>(from);
  out[0] = value.x;
  out[1] = value.y;
  out[2] = value.z;
  out[3] = value.w;
}
"""

_LOAD32 = """
__device__ __forceinline__ unsigned tbn_load32(const void* from) {
  return *reinterpret_cast<const unsigned*>(from);
}
"""

_SYNC_WARP = """
__device__ __forceinline__ void tbn_sync_warp() {
  __syncwarp();
}
"""

_STORE16 = """
__device__ __forceinline__ void tbn_store16_{name}(void* to, {type} value) {{
  *reinterpret_cast<{type}*>(to) = value;
}}
"""

_STORE_FLOAT = """
__device__ __forceinline__ void tbn_store_float(void* to, float value) {
  *reinterpret_cast<float*>(to) = value;
}
"""

_LOAD_FLOAT = """
__device__ __forceinline__ float tbn_load_float(const void* from) {
  return *reinterpret_cast<const float*>(from);
}
"""

_STORE128 = """
__device__ __forceinline__ void tbn_store128(
    void* to, unsigned a, unsigned b, unsigned c, unsigned d) {
  *reinterpret_cast<uint4*>(to) = make_uint4(a, b, c, d);
}
"""

_MBARRIER_INIT = """
__device__ __forceinline__ void tbn_mbarrier_init(void* bar, unsigned count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
               :: "r"((unsigned)__cvta_generic_to_shared(bar)), "r"(count) : "memory");
}
"""

_MBARRIER_ARRIVE = """
__device__ __forceinline__ void tbn_mbarrier_arrive(void* bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];"
               :: "r"((unsigned)__cvta_generic_to_shared(bar)) : "memory");
}
"""

_MBARRIER_EXPECT_TX = """
__device__ __forceinline__ void tbn_mbarrier_expect_tx(void* bar, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               :: "r"((unsigned)__cvta_generic_to_shared(bar)), "r"(bytes) : "memory");
}
"""

# The instruction itself sleeps for a while before it says "not yet".
_MBARRIER_WAIT = """
__device__ __forceinline__ void tbn_mbarrier_wait(void* bar, unsigned parity) {
  unsigned done;
  do {
    asm volatile("{ .reg .pred p; "
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
                 "selp.b32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"((unsigned)__cvta_generic_to_shared(bar)), "r"(parity)
                 : "memory");
  } while (!done);
}
"""

_FENCE_BARRIER_INIT = """
__device__ __forceinline__ void tbn_fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
"""

_TMA_LOAD_2D = """
__device__ __forceinline__ void tbn_tma_load_2d(
    void* shared, unsigned long long map, int c0, int c1, void* bar) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];"
      :: "r"((unsigned)__cvta_generic_to_shared(shared)), "l"(map), "r"(c0), "r"(c1),
         "r"((unsigned)__cvta_generic_to_shared(bar))
      : "memory");
}
"""

_WGMMA_FENCE = """
__device__ __forceinline__ void tbn_wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
"""

_WGMMA_COMMIT = """
__device__ __forceinline__ void tbn_wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
"""

_WGMMA_WAIT = """
__device__ __forceinline__ void tbn_wgmma_wait(int pending) {
  if (pending == 0) {
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  } else {
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
  }
}
"""

# Fields of the PTX ISA's matrix descriptor: address, leading and stride byte offsets (all in
# units of 16 bytes), and the swizzle in the top two bits.
_SMEM_DESCRIPTOR = """
__device__ __forceinline__ unsigned long long tbn_smem_descriptor(
    const void* shared, int leading, int stride, int swizzle) {
  unsigned long long address = (unsigned)__cvta_generic_to_shared(shared);
  return ((address & 0x3FFFF) >> 4) | ((unsigned long long)((leading & 0x3FFFF) >> 4) << 16) |
         ((unsigned long long)((stride & 0x3FFFF) >> 4) << 32) |
         ((unsigned long long)swizzle << 62);
}
"""

# setmaxnreg: the registers that one warpgroup gives up are another's to have.
_REGISTERS = """
__device__ __forceinline__ void tbn_registers_{change}_{count}() {{
  asm volatile("setmaxnreg.{change}.sync.aligned.u32 {count};");
}}
"""

_UNIFORM = """
__device__ __forceinline__ int tbn_uniform(int value) {
  return __shfl_sync(0xffffffff, value, 0);
}
"""

_ALIGN = """
__device__ __forceinline__ int tbn_bytes_to_1024(const void* pointer) {
  return (int)((1024 - ((unsigned long long)pointer & 1023)) & 1023);
}
"""

SHORT = {"float16": "f16", "bfloat16": "bf16"}
"""The names of 16-bit floats in instructions."""

ONE = {"float16": 0x3C003C00, "bfloat16": 0x3F803F80}
"""Two ones, packed."""


def _call(name: str, *args, source: str, guarded: bool = True):
    source = _GUARD.format(source) if guarded else source
    T.evaluate(cuda_func_call(name, *args, source_code=source))


def mma(dtype: str, acc, a, b) -> None:
    """``acc (16 x 8, float32) += a (16 x 16) * b (16 x 8)``, a warp together.

    Parameters
    ----------
    dtype : str
        ``float16`` or ``bfloat16``, of both operands.
    acc : Expr
        Address of this lane's four sums.
    a, b : sequence of Expr
        This lane's four and two uint32 registers, as the PTX ISA lays ``m16n8k16`` out.
    """
    short = SHORT[dtype]
    _call(f"tbn_mma_m16n8k16_{short}", acc, *a, *b, source=_MMA.format(name=short, ptx=short))


def cp_async16(shared, global_address, size) -> None:
    """Start copying 16 bytes, of which those past ``size`` are zeros."""
    _call("tbn_cp_async16", shared, global_address, size, source=_CP_ASYNC)


def cp_async_commit() -> None:
    """Close a group of copies."""
    _call("tbn_cp_async_commit", source=_CP_ASYNC_COMMIT)


def cp_async_wait(pending: int) -> None:
    """Wait until at most so many groups of copies (0 to 4) are in flight."""
    _call("tbn_cp_async_wait", pending, source=_CP_ASYNC_WAIT)


def load128(out, address) -> None:
    """Read four uint32 from a 16-byte aligned address."""
    _call("tbn_load128", out, address, source=_LOAD128, guarded=False)


def store128(address, values) -> None:
    """Write four uint32 to a 16-byte aligned address."""
    _call("tbn_store128", address, *values, source=_STORE128, guarded=False)


def registers(change: str, count: int) -> None:
    """Have a warpgroup give up (``dec``) or take (``inc``) registers, to so many a thread."""
    source = _REGISTERS.format(change=change, count=count)
    _call(f"tbn_registers_{change}_{count}", source=source)


def uniform(value):
    """A value that is the same in all lanes of a warp, told to the compiler."""
    return cuda_func_call("tbn_uniform", value, source_code=_UNIFORM, return_type="int32")


def load32(address):
    """Read a uint32 where TVM need not know."""
    return cuda_func_call("tbn_load32", address, source_code=_LOAD32, return_type="uint32")


def sync_warp() -> None:
    """All lanes of a warp wait for one another and see one another's memory."""
    _call("tbn_sync_warp", source=_SYNC_WARP, guarded=False)


def store16(address, value, dtype: str) -> None:
    """Write a 16-bit float where TVM need not know."""
    kind = {"float16": "half", "bfloat16": "nv_bfloat16"}[dtype]
    source = _STORE16.format(name=SHORT[dtype], type=kind)
    _call(f"tbn_store16_{SHORT[dtype]}", address, value, source=source, guarded=False)


def store_float(address, value) -> None:
    """Write a float32 where TVM need not know: it would put barriers into branches."""
    _call("tbn_store_float", address, value, source=_STORE_FLOAT, guarded=False)


def load_float(address):
    """Read a float32 where TVM need not know."""
    return cuda_func_call("tbn_load_float", address, source_code=_LOAD_FLOAT, return_type="float32")


def bytes_to_1024(address):
    """Bytes from an address to the next multiple of 1024."""
    return cuda_func_call("tbn_bytes_to_1024", address, source_code=_ALIGN, return_type="int32")


def mbarrier_init(barrier, count: int) -> None:
    """Prepare a barrier for so many arrivals."""
    _call("tbn_mbarrier_init", barrier, T.uint32(count), source=_MBARRIER_INIT)


def mbarrier_arrive(barrier) -> None:
    """Arrive at a barrier."""
    _call("tbn_mbarrier_arrive", barrier, source=_MBARRIER_ARRIVE)


def mbarrier_expect_tx(barrier, size: int) -> None:
    """Arrive at a barrier whose phase also waits for so many bytes of copies."""
    _call("tbn_mbarrier_expect_tx", barrier, T.uint32(size), source=_MBARRIER_EXPECT_TX)


def mbarrier_wait(barrier, parity) -> None:
    """Wait until the phase of a parity has ended."""
    _call("tbn_mbarrier_wait", barrier, parity, source=_MBARRIER_WAIT)


def fence_barrier_init() -> None:
    """Let the copy engine see barriers just prepared."""
    _call("tbn_fence_barrier_init", source=_FENCE_BARRIER_INIT)


def tma_load_2d(shared, tensor_map, column, row, barrier) -> None:
    """Have the copy engine bring a box of a matrix; one thread asks."""
    _call("tbn_tma_load_2d", shared, tensor_map, column, row, barrier, source=_TMA_LOAD_2D)


def wgmma_fence() -> None:
    """Order a warpgroup's registers before its next products."""
    _call("tbn_wgmma_fence", source=_WGMMA_FENCE)


def wgmma_commit() -> None:
    """Close a group of products."""
    _call("tbn_wgmma_commit", source=_WGMMA_COMMIT)


def wgmma_wait(pending: int) -> None:
    """Wait until at most 0 or 1 groups of products are in flight."""
    _call("tbn_wgmma_wait", pending, source=_WGMMA_WAIT)


def smem_descriptor(shared, leading: int, stride: int, swizzle: int):
    """What a product needs to know of its operand in shared memory."""
    return cuda_func_call(
        "tbn_smem_descriptor",
        shared,
        leading,
        stride,
        swizzle,
        source_code=_GUARD.format(_SMEM_DESCRIPTOR),
        return_type="uint64",
    )


def wgmma(dtype: str, columns: int, acc, a, descriptor) -> None:
    """``acc (64 x columns, float32) += a (64 x 16, registers) * b (16 x columns, shared)``.

    A warpgroup together and asynchronously; ``a`` are this lane's four registers, laid out like
    those of ``m16n8k16`` with a warp every 16 rows, ``acc`` the address of its ``columns / 2``
    sums.
    """
    short, count = SHORT[dtype], columns // 2
    sums = ", ".join(f"%{i}" for i in range(count))
    a_regs = ", ".join(f"%{count + i}" for i in range(4))
    outputs = ", ".join(f'"+f"(acc[{i}])' for i in range(count))
    source = f"""
__device__ __forceinline__ void tbn_wgmma_m64n{columns}k16_{short}(
    float* acc, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned long long b) {{
  asm volatile(
      "{{ .reg .pred add; setp.ne.b32 add, 1, 0; "
      "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{short}.{short} "
      "{{{sums}}}, {{{a_regs}}}, %{count + 4}, add, 1, 1, 0; }}"
      : {outputs}
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
}}
"""
    _call(f"tbn_wgmma_m64n{columns}k16_{short}", acc, *a, descriptor, source=source)


def decoded(word, pair: int, dtype: str):
    """Two signs of a word as two packed floats: bits ``pair`` and ``pair + 16``, set is +1.

    A shift and one logic instruction: the bits move onto the two sign bits of minus one.
    """
    minus_one = ONE[dtype] | 0x80008000
    shifted = word << T.uint32(15 - pair) if pair < 15 else word
    return T.bitwise_xor(T.bitwise_and(shifted, T.uint32(0x80008000)), T.uint32(minus_one))
