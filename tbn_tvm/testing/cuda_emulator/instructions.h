// The hardware instructions behind the tbn_* device functions of our kernels.
#pragma once

// mma.sync.aligned.m16n8k16.row.col.f32: acc (16x8) += a (16x16) * b (16x8).
void tbn_mma_m16n8k16_f16(float* acc, unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                          unsigned b0, unsigned b1);
void tbn_mma_m16n8k16_bf16(float* acc, unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                           unsigned b0, unsigned b1);

// ldmatrix.sync.aligned.m8n8: lane i gives the address of row i % 8 of matrix i / 8.
void tbn_ldmatrix_x2(unsigned* out, const void* row);
void tbn_ldmatrix_x2_trans(unsigned* out, const void* row);
void tbn_ldmatrix_x4(unsigned* out, const void* row);
void tbn_ldmatrix_x4_trans(unsigned* out, const void* row);

// cp.async.cg.shared.global: `bytes` of 16 are read, the others become zero.
void tbn_cp_async16(void* shared, const void* global, int bytes);
void tbn_cp_async_commit();
void tbn_cp_async_wait(int pending);
