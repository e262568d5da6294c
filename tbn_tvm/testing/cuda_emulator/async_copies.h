// mbarriers and the copy engine that signals them (TMA).
#pragma once

#include <cstdint>

enum TbnSwizzle : uint32_t { kTbnNoSwizzle = 0, kTbnSwizzle128 = 1 };

// Stands for the driver's opaque tensor map of a matrix; tensor_map.py fills it in.
struct __attribute__((aligned(64))) CUtensorMap {
  uint64_t magic;
  const char* base;
  uint64_t dims[2];      // elements; the first is the contiguous one
  uint64_t stride;       // bytes from one row to the next
  uint32_t box[2];       // elements that one load brings
  uint32_t element;      // bytes
  uint32_t swizzle;      // TbnSwizzle
  uint64_t unused[8];
};
static_assert(sizeof(CUtensorMap) == 128, "as large as the driver's");

constexpr uint64_t kTbnTensorMap = 0x50414d524f534e54; // "TNSORMAP"

// `bar` is the address of 64 bits of shared memory, of whatever type.
// mbarrier.init, .arrive, .arrive.expect_tx, .try_wait.parity until it succeeds
void tbn_mbarrier_init(void* bar, unsigned count);
void tbn_mbarrier_arrive(void* bar);
void tbn_mbarrier_expect_tx(void* bar, unsigned bytes);
void tbn_mbarrier_wait(void* bar, unsigned parity);
void tbn_fence_barrier_init();
void tbn_fence_proxy_async();

// cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier: the box at (c0, c1), zeros outside.
void tbn_tma_load_2d(void* shared, const void* tensor_map, int c0, int c1,
                     void* bar);
// TVM hands the address of a map over as a number.
inline void tbn_tma_load_2d(void* shared, unsigned long long tensor_map, int c0, int c1,
                            void* bar) {
  tbn_tma_load_2d(shared, reinterpret_cast<const void*>(tensor_map), c0, c1, bar);
}
