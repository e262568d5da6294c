#include "instructions.h"

#include <cmath>
#include <cstring>
#include <type_traits>

#include "fibers.h"

#include "vectors.h"

#include "narrow_floats.h"

using namespace tbn_emulator;

namespace {

constexpr unsigned kWholeWarp = ~0u;

void require_whole_warp(const char* what) {
  if (lanes_of_warp() != kWholeWarp) fail("%s needs a warp of 32 threads", what);
}

// mma ------------------------------------------------------------------------------------------

struct Fragments {
  float* acc;
  unsigned a[4], b[2];
};

template <class Format>
float element(unsigned word, int index) {
  return Format::decode(static_cast<uint16_t>(word >> 16 * index));
}

// Register layouts of the PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type":
// with group = lane / 4 and pair = 2 * (lane % 4), register a[i] holds row group + 8 * (i & 1),
// columns pair + 8 * (i >> 1) and the next; b[i] rows pair + 8 * i and the next of column group;
// acc[i] row group + 8 * (i >> 1), column pair + (i & 1).
template <class Format>
void multiply(void** payloads, unsigned) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<const Fragments*>(payloads[lane]);
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i) {
        a[group + 8 * (i & 1)][pair + 8 * (i >> 1) + half] = element<Format>(own.a[i], half);
      }
      for (int i = 0; i < 2; ++i) b[pair + 8 * i + half][group] = element<Format>(own.b[i], half);
    }
  }
  for (int row = 0; row < 16; ++row) {
    const auto sum_of = [&](int column) {
      const int lane = row % 8 * 4 + column / 2;
      return static_cast<Fragments*>(payloads[lane])->acc + row / 8 * 2 + column % 2;
    };
    double sums[8];
    for (int column = 0; column < 8; ++column) sums[column] = *sum_of(column);
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < 8; ++column) sums[column] += double(a[row][k]) * b[k][column];
    }
    for (int column = 0; column < 8; ++column) *sum_of(column) = static_cast<float>(sums[column]);
  }
}

template <class Format>
void mma(const char* name, float* acc, unsigned a0, unsigned a1, unsigned a2, unsigned a3,
         unsigned b0, unsigned b1) {
  require_whole_warp(name);
  Fragments own{acc, {a0, a1, a2, a3}, {b0, b1}};
  warp_collective(kWholeWarp, name, 0, &own, &multiply<Format>);
}

// ldmatrix -------------------------------------------------------------------------------------

struct Load {
  unsigned* out;
  const void* row;
};

uint16_t loaded(void** payloads, int matrix, int row, int column) {
  uint16_t value;
  const void* address = static_cast<const Load*>(payloads[8 * matrix + row])->row;
  memcpy(&value, static_cast<const char*>(address) + 2 * column, 2);
  return value;
}

template <int count, bool transposed>
void load(void** payloads, unsigned) {
  for (int lane = 0; lane < 32; ++lane) {
    const int major = lane / 4, minor = lane % 4 * 2;
    for (int matrix = 0; matrix < count; ++matrix) {
      unsigned word = 0;
      for (int half = 0; half < 2; ++half) {
        const uint16_t value = transposed ? loaded(payloads, matrix, minor + half, major)
                                          : loaded(payloads, matrix, major, minor + half);
        word |= unsigned{value} << 16 * half;
      }
      static_cast<const Load*>(payloads[lane])->out[matrix] = word;
    }
  }
}

template <int count, bool transposed>
void ldmatrix(const char* name, unsigned* out, const void* row) {
  require_whole_warp(name);
  // The other lanes' addresses are ignored.
  if (self->lane < 8 * count) check_shared(row, 16, 16, name);
  Load own{out, row};
  warp_collective(kWholeWarp, name, 0, &own, &load<count, transposed>);
}

// cp.async -------------------------------------------------------------------------------------

void land(const PendingCopy& copy) {
  memset(copy.to, 0, 16);
  memcpy(copy.to, copy.from, copy.bytes);
}

} // namespace

void tbn_mma_m16n8k16_f16(float* acc, unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                          unsigned b0, unsigned b1) {
  mma<Binary16>("tbn_mma_m16n8k16_f16", acc, a0, a1, a2, a3, b0, b1);
}

void tbn_mma_m16n8k16_bf16(float* acc, unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                           unsigned b0, unsigned b1) {
  mma<Brain16>("tbn_mma_m16n8k16_bf16", acc, a0, a1, a2, a3, b0, b1);
}

void tbn_ldmatrix_x2(unsigned* out, const void* row) {
  ldmatrix<2, false>("tbn_ldmatrix_x2", out, row);
}

void tbn_ldmatrix_x2_trans(unsigned* out, const void* row) {
  ldmatrix<2, true>("tbn_ldmatrix_x2_trans", out, row);
}

void tbn_ldmatrix_x4(unsigned* out, const void* row) {
  ldmatrix<4, false>("tbn_ldmatrix_x4", out, row);
}

void tbn_ldmatrix_x4_trans(unsigned* out, const void* row) {
  ldmatrix<4, true>("tbn_ldmatrix_x4_trans", out, row);
}

void tbn_cp_async16(void* shared, const void* global, int bytes) {
  check_shared(shared, 16, 16, "tbn_cp_async16");
  if (reinterpret_cast<uintptr_t>(global) % 16) {
    fail("tbn_cp_async16: the global address %p is not a multiple of 16 bytes", global);
  }
  if (bytes < 0 || bytes > 16) fail("tbn_cp_async16: %d bytes of 16", bytes);
  const PendingCopy copy{shared, global, bytes};
  if (options.early_copies) {
    land(copy);
  } else {
    own().copies.push_back(copy);
  }
}

void tbn_cp_async_commit() { own().copy_groups.push_back(own().copies.size()); }

void tbn_cp_async_wait(int pending) {
  if (pending < 0) fail("tbn_cp_async_wait: %d groups", pending);
  auto& groups = own().copy_groups;
  auto& copies = own().copies;
  if (groups.size() <= static_cast<size_t>(pending)) return;
  const size_t landed_groups = groups.size() - pending;
  const size_t landed = groups[landed_groups - 1];
  for (size_t i = 0; i < landed; ++i) land(copies[i]);
  copies.erase(copies.begin(), copies.begin() + static_cast<std::ptrdiff_t>(landed));
  groups.erase(groups.begin(), groups.begin() + static_cast<std::ptrdiff_t>(landed_groups));
  for (size_t& end : groups) end -= landed;
}
