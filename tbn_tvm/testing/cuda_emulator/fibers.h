// What the instructions know of the scheduler and kernels do not.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "scheduler.h"

namespace tbn_emulator {

// A copy that a thread issued and that has not landed.
struct PendingCopy {
  void* to;
  const void* from;
  int bytes;
};

struct Fiber : Thread {
  std::vector<PendingCopy> copies;   // of cp.async, oldest first
  std::vector<size_t> copy_groups;   // ends of the committed groups in `copies`
  size_t wgmma_issued, wgmma_landed; // numbers of operations, counted from the start of the block
  std::vector<size_t> wgmma_groups;  // value of wgmma_issued at each commit
  bool wgmma_fenced;
  // The scheduler's own.
  void* stack_pointer;
  const char* waits_for;
  int waits_at_line;
  const void* waits_on;
  bool finished;
};

inline Fiber& own() { return *static_cast<Fiber*>(self); }
Fiber& fiber(int id);

// Fails unless [address, address + bytes) is shared memory and aligned.
void check_shared(const void* address, size_t bytes, size_t alignment, const char* what);
char* shared_pointer(uint32_t address);

// The 128-byte swizzle: the 16-byte chunk of a 128-byte row is exchanged with the row's number.
inline uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

// Gives the processor away until wake(on) is called.
void wait_for(const char* what, int line, const void* on);
void wake(const void* on);

// Runs when every thread waits: the latest moment for asynchronous work to be done.
void at_standstill(std::function<void()> work);

// The wgmma operations of a warpgroup, in order.
struct WarpgroupProduct;
std::vector<std::shared_ptr<WarpgroupProduct>>& warpgroup_products(int group);

} // namespace tbn_emulator
