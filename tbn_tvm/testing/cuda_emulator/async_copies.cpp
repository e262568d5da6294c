#include "async_copies.h"

#include <cstring>

#include "fibers.h"

using namespace tbn_emulator;

namespace {

constexpr uint32_t kBarrierMagic = 0x5ab1;

// The 64 bits of an mbarrier. Memory that was never initialised does not have the magic number.
struct __attribute__((packed)) Word {
  uint16_t magic_and_phase; // 15 bits, 1 bit
  uint16_t pending;         // arrivals that are missing
  uint16_t expected;        // arrivals of a phase
  int16_t units;            // of 16 bytes that are missing
};
static_assert(sizeof(Word) == 8, "an mbarrier is 64 bits");

Word read(const void* bar, const char* what) {
  check_shared(bar, 8, 8, what);
  Word word;
  memcpy(&word, bar, 8);
  if (word.magic_and_phase >> 1 != kBarrierMagic) fail("%s: the barrier is not initialised", what);
  return word;
}

void write(void* bar, Word word) {
  if (word.pending == 0 && word.units == 0) {
    word.magic_and_phase ^= 1;
    word.pending = word.expected;
    memcpy(bar, &word, 8);
    wake(bar);
  } else {
    memcpy(bar, &word, 8);
  }
}

void add_units(Word& word, int bytes, const char* what) {
  if (bytes % 16) fail("%s: %d bytes are not a multiple of 16", what, bytes);
  const int units = word.units + bytes / 16;
  if (units > 32767 || units < -32768) fail("%s: more than 512 KiB in flight", what);
  word.units = static_cast<int16_t>(units);
}

void take_arrival(Word& word, const char* what) {
  if (word.pending == 0) fail("%s: more arrivals than the barrier expects", what);
  --word.pending;
}

void complete(void* bar, int bytes) {
  Word word = read(bar, "tbn_tma_load_2d");
  add_units(word, -bytes, "tbn_tma_load_2d");
  write(bar, word);
}

struct Box {
  CUtensorMap map;
  char* shared;
  long c0, c1;
  void* bar;

  int bytes() const { return static_cast<int>(map.box[0] * map.box[1] * map.element); }

  void land() const {
    const uint32_t row_bytes = map.box[0] * map.element;
    for (uint32_t row = 0; row < map.box[1]; ++row) {
      for (uint32_t column = 0; column < map.box[0]; ++column) {
        char* to = place(row * row_bytes + column * map.element);
        const long x = c0 + column, y = c1 + row;
        // Below zero is far outside, too.
        if (uint64_t(x) < map.dims[0] && uint64_t(y) < map.dims[1]) {
          memcpy(to, map.base + uint64_t(y) * map.stride + uint64_t(x) * map.element, map.element);
        } else {
          memset(to, 0, map.element);
        }
      }
    }
    complete(bar, bytes());
  }

  char* place(uint32_t offset) const {
    const uint32_t address = shared_address(shared) + offset;
    return map.swizzle == kTbnSwizzle128 ? shared_pointer(swizzled(address)) : shared + offset;
  }
};

} // namespace

void tbn_mbarrier_init(void* bar, unsigned count) {
  check_shared(bar, 8, 8, "tbn_mbarrier_init");
  if (count < 1 || count > 65535) fail("tbn_mbarrier_init: a count of %u", count);
  const auto arrivals = static_cast<uint16_t>(count);
  const Word word{static_cast<uint16_t>(kBarrierMagic << 1), arrivals, arrivals, 0};
  memcpy(bar, &word, 8);
}

void tbn_mbarrier_arrive(void* bar) {
  Word word = read(bar, "tbn_mbarrier_arrive");
  take_arrival(word, "tbn_mbarrier_arrive");
  write(bar, word);
}

void tbn_mbarrier_expect_tx(void* bar, unsigned bytes) {
  Word word = read(bar, "tbn_mbarrier_expect_tx");
  add_units(word, static_cast<int>(bytes), "tbn_mbarrier_expect_tx");
  take_arrival(word, "tbn_mbarrier_expect_tx");
  write(bar, word);
}

void tbn_mbarrier_wait(void* bar, unsigned parity) {
  if (parity > 1) fail("tbn_mbarrier_wait: a parity of %u", parity);
  // The phase that has this parity is over when the current one has the other.
  while ((read(bar, "tbn_mbarrier_wait").magic_and_phase & 1) == parity) {
    wait_for(parity ? "tbn_mbarrier_wait for parity 1" : "tbn_mbarrier_wait for parity 0", 0, bar);
  }
}

void tbn_fence_barrier_init() {}

void tbn_fence_proxy_async() {}

void tbn_tma_load_2d(void* shared, const void* tensor_map, int c0, int c1,
                     void* bar) {
  const char* const what = "tbn_tma_load_2d";
  if (reinterpret_cast<uintptr_t>(tensor_map) % 64) {
    fail("%s: the tensor map %p is not a multiple of 64 bytes", what, tensor_map);
  }
  Box box{{}, static_cast<char*>(shared), c0, c1, bar};
  memcpy(&box.map, tensor_map, sizeof box.map);
  if (box.map.magic != kTbnTensorMap) fail("%s: this is no tensor map", what);
  read(bar, what);
  check_shared(shared, static_cast<size_t>(box.bytes()), 128, what);
  if (box.map.swizzle == kTbnSwizzle128 && box.map.box[0] * box.map.element != 128) {
    fail("%s: rows of %u bytes, where the swizzle needs 128", what,
         box.map.box[0] * box.map.element);
  }
  if (options.early_copies) {
    box.land();
  } else {
    at_standstill([box] { box.land(); });
  }
}
