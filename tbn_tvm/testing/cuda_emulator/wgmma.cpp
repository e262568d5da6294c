#include "wgmma.h"

#include <cmath>
#include <cstring>
#include <type_traits>

#include "fibers.h"

#include "vectors.h"

#include "narrow_floats.h"

namespace tbn_emulator {

namespace {

constexpr int kThreads = 128;
constexpr int kLanes = 32;

// Fields of the descriptor, in bits; addresses and offsets are in units of 16 bytes.
constexpr int kLeading = 16, kStride = 32, kSwizzle = 62;
constexpr uint64_t kField = 0x3fff;

struct Descriptor {
  uint32_t start, leading, stride;
  bool swizzle;
};

Descriptor decode(uint64_t bits) {
  const auto field = [&](int at) { return static_cast<uint32_t>((bits >> at & kField) << 4); };
  return {field(0), field(kLeading), field(kStride), (bits >> kSwizzle) == 1};
}

// "Shared Memory Matrix Layout" of the PTX ISA, K-major: rows of B transposed are columns of B.
// Without swizzle 8 rows of 16 bytes are contiguous, and the leading offset leads to the next 8
// values of k. With it 8 rows of 128 bytes are, of which an instruction sees 32 bytes. The stride
// leads to the next 8 rows in both.
const char* value_of_b(const Descriptor& b, int column, int k) {
  const uint32_t group = column / 8, row = column % 8, chunk = k / 8;
  if (!b.swizzle) {
    return shared_pointer(b.start + group * b.stride + chunk * b.leading + row * 16 + k % 8 * 2);
  }
  return shared_pointer(swizzled(b.start + group * b.stride + row * 128 + chunk * 16) + k % 8 * 2);
}

float value(Operand format, uint16_t bits) {
  return format == Operand::kHalf ? Binary16::decode(bits) : Brain16::decode(bits);
}

} // namespace

// One instruction: what each of the 128 threads gave it.
struct WarpgroupProduct {
  int columns;
  Operand format;
  uint64_t descriptor;
  int issued, waited; // threads
  bool landed[kThreads / kLanes];
  float* acc[kThreads];
  unsigned a[kThreads][4];

  // The rows of one warp; registers are laid out as in mma.m16n8k16, 8 columns at a time.
  void land(int warp) {
    if (landed[warp]) return;
    landed[warp] = true;
    const Descriptor from = decode(descriptor);
    float left[16][16];
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int i = 0; i < 8; ++i) {
        const unsigned word = a[warp * kLanes + lane][i / 2];
        const int row = lane / 4 + 8 * (i / 2 & 1), k = lane % 4 * 2 + 8 * (i / 4) + i % 2;
        left[row][k] = value(format, static_cast<uint16_t>(word >> 16 * (i % 2)));
      }
    }
    static double right[16][256], sums[256];
    for (int column = 0; column < columns; ++column) {
      for (int k = 0; k < 16; ++k) {
        uint16_t bits;
        memcpy(&bits, value_of_b(from, column, k), 2);
        right[k][column] = value(format, bits);
      }
    }
    for (int row = 0; row < 16; ++row) {
      const auto register_of = [&](int column) {
        const int lane = row % 8 * 4 + column % 8 / 2;
        return acc[warp * kLanes + lane] + column / 8 * 4 + row / 8 * 2 + column % 2;
      };
      for (int column = 0; column < columns; ++column) sums[column] = *register_of(column);
      for (int k = 0; k < 16; ++k) {
        for (int column = 0; column < columns; ++column) {
          sums[column] += double(left[row][k]) * right[k][column];
        }
      }
      for (int column = 0; column < columns; ++column) {
        *register_of(column) = static_cast<float>(sums[column]);
      }
    }
  }
};

void wgmma(int columns, Operand format, float* acc, unsigned a0, unsigned a1, unsigned a2,
           unsigned a3, unsigned long long descriptor) {
  const int group = self->id / kThreads, place = self->id % kThreads;
  if ((group + 1) * kThreads > threads_in_block()) fail("wgmma needs warpgroups of 128 threads");
  if (!own().wgmma_fenced) fail("wgmma: no tbn_wgmma_fence since the last commit");
  auto& products = warpgroup_products(group);
  const size_t number = own().wgmma_issued++;
  if (products.size() == number) {
    products.push_back(std::make_shared<WarpgroupProduct>());
    WarpgroupProduct& fresh = *products.back();
    fresh.columns = columns;
    fresh.format = format;
    fresh.descriptor = descriptor;
  }
  WarpgroupProduct& product = *products[number];
  if (product.columns != columns || product.format != format) {
    fail("wgmma: threads of a warpgroup issue different instructions");
  }
  if (product.descriptor != descriptor) {
    fail("wgmma: threads of a warpgroup give different descriptors, %#llx and %#llx", descriptor,
         static_cast<unsigned long long>(product.descriptor));
  }
  product.acc[place] = acc;
  const unsigned a[] = {a0, a1, a2, a3};
  memcpy(product.a[place], a, sizeof a);
  if (++product.issued < kThreads) return;
  if (options.early_copies) {
    for (int warp = 0; warp < kThreads / kLanes; ++warp) product.land(warp);
  }
  wake(&product);
}

} // namespace tbn_emulator

using namespace tbn_emulator;

void tbn_wgmma_fence() { own().wgmma_fenced = true; }

void tbn_wgmma_commit() {
  own().wgmma_groups.push_back(own().wgmma_issued);
  own().wgmma_fenced = false;
}

void tbn_wgmma_wait(int pending) {
  auto& groups = own().wgmma_groups;
  if (pending < 0) fail("tbn_wgmma_wait: %d groups", pending);
  if (groups.size() <= static_cast<size_t>(pending)) return;
  const size_t finished = groups.size() - pending;
  const size_t end = groups[finished - 1];
  groups.erase(groups.begin(), groups.begin() + static_cast<std::ptrdiff_t>(finished));
  auto& products = warpgroup_products(self->id / kThreads);
  for (; own().wgmma_landed < end; ++own().wgmma_landed) {
    // Not a reference: other threads add products meanwhile.
    const std::shared_ptr<WarpgroupProduct> product = products[own().wgmma_landed];
    while (product->issued < kThreads) {
      wait_for("tbn_wgmma_wait for other warps' wgmma", 0, product.get());
    }
    product->land(self->id % kThreads / kLanes);
    if (++product->waited == kThreads) products[own().wgmma_landed].reset();
  }
}

unsigned long long tbn_smem_descriptor(const void* shared, int leading_byte_offset,
                                       int stride_byte_offset, int swizzle) {
  const char* const what = "tbn_smem_descriptor";
  check_shared(shared, 16, 16, what);
  const auto encoded = [&](int bytes) {
    if (bytes < 0 || bytes % 16 || bytes >> 4 > static_cast<int>(kField)) {
      fail("%s: an offset of %d bytes", what, bytes);
    }
    return static_cast<uint64_t>(bytes >> 4);
  };
  if (swizzle != 0 && swizzle != 1) fail("%s: swizzle %d is neither 0 nor 1", what, swizzle);
  const uint32_t address = shared_address(shared);
  if (swizzle && (address >> 7 & 7)) {
    fail("%s: swizzled rows start at shared address %#x, not in the first row of 1024 bytes", what,
         address);
  }
  return uint64_t{address >> 4} | encoded(leading_byte_offset) << kLeading |
         encoded(stride_byte_offset) << kStride | uint64_t(swizzle) << kSwizzle;
}
