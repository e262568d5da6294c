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

_STORE128 = """
__device__ __forceinline__ void tbn_store128(
    void* to, unsigned a, unsigned b, unsigned c, unsigned d) {
  *reinterpret_cast<uint4*>(to) = make_uint4(a, b, c, d);
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


def decoded(word, pair: int, dtype: str):
    """Two signs of a word as two packed floats: bits ``pair`` and ``pair + 16``, set is +1.

    A shift and one logic instruction: the bits move onto the two sign bits of minus one.
    """
    minus_one = ONE[dtype] | 0x80008000
    shifted = word << T.uint32(15 - pair) if pair < 15 else word
    return T.bitwise_xor(T.bitwise_and(shifted, T.uint32(0x80008000)), T.uint32(minus_one))
