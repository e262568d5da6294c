// Products of a warpgroup (128 threads), asynchronous.
#pragma once

void tbn_wgmma_fence();
void tbn_wgmma_commit();
void tbn_wgmma_wait(int pending);

// The matrix descriptor of the PTX ISA; swizzle is 0 for none, 1 for 128 bytes.
unsigned long long tbn_smem_descriptor(const void* shared, int leading_byte_offset,
                                       int stride_byte_offset, int swizzle);

namespace tbn_emulator {
enum class Operand { kHalf, kBrain };
void wgmma(int columns, Operand format, float* acc, unsigned a0, unsigned a1, unsigned a2,
           unsigned a3, unsigned long long descriptor);
} // namespace tbn_emulator

// wgmma.mma_async.sync.aligned.m64nNk16.f32: acc (64xN) += a (64x16, registers) * b (16xN).
#define TBN_WGMMA(N)                                                                             \
  inline void tbn_wgmma_m64n##N##k16_f16(float* acc, unsigned a0, unsigned a1, unsigned a2,      \
                                         unsigned a3, unsigned long long descriptor) {           \
    tbn_emulator::wgmma(N, tbn_emulator::Operand::kHalf, acc, a0, a1, a2, a3, descriptor);       \
  }                                                                                              \
  inline void tbn_wgmma_m64n##N##k16_bf16(float* acc, unsigned a0, unsigned a1, unsigned a2,     \
                                          unsigned a3, unsigned long long descriptor) {          \
    tbn_emulator::wgmma(N, tbn_emulator::Operand::kBrain, acc, a0, a1, a2, a3, descriptor);      \
  }
TBN_WGMMA(8)
TBN_WGMMA(16)
TBN_WGMMA(24)
TBN_WGMMA(32)
TBN_WGMMA(40)
TBN_WGMMA(48)
TBN_WGMMA(56)
TBN_WGMMA(64)
TBN_WGMMA(80)
TBN_WGMMA(96)
TBN_WGMMA(112)
TBN_WGMMA(128)
TBN_WGMMA(160)
TBN_WGMMA(192)
TBN_WGMMA(224)
TBN_WGMMA(256)
#undef TBN_WGMMA

// setmaxnreg: nothing to emulate, as long as a count is one the instruction takes.
#define TBN_REGISTERS(COUNT)                                                                     \
  inline void tbn_registers_inc_##COUNT() {}                                                     \
  inline void tbn_registers_dec_##COUNT() {}
TBN_REGISTERS(24) TBN_REGISTERS(32) TBN_REGISTERS(40) TBN_REGISTERS(48) TBN_REGISTERS(56)
TBN_REGISTERS(64) TBN_REGISTERS(72) TBN_REGISTERS(80) TBN_REGISTERS(88) TBN_REGISTERS(96)
TBN_REGISTERS(104) TBN_REGISTERS(112) TBN_REGISTERS(120) TBN_REGISTERS(128) TBN_REGISTERS(136)
TBN_REGISTERS(144) TBN_REGISTERS(152) TBN_REGISTERS(160) TBN_REGISTERS(168) TBN_REGISTERS(176)
TBN_REGISTERS(184) TBN_REGISTERS(192) TBN_REGISTERS(200) TBN_REGISTERS(208) TBN_REGISTERS(216)
TBN_REGISTERS(224) TBN_REGISTERS(232) TBN_REGISTERS(240) TBN_REGISTERS(248) TBN_REGISTERS(256)
#undef TBN_REGISTERS
