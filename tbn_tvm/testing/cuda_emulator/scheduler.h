// Blocks of CUDA threads as fibers of one operating-system thread.
//
// A thread runs until it has to wait, then the next one runs: that order is legal on a GPU and
// unkind to kernels that lack a barrier. Whatever a kernel does wrong ends the launch with a
// message; it never ends the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace tbn_emulator {

struct Index {
  unsigned x, y, z;
};

enum Order : int { kForward = 0, kReverse = 1, kShuffled = 2 };

struct Options {
  int order;        // in which order threads that may run do run
  int seed;         // of kShuffled
  int early_copies; // asynchronous work is done when issued, instead of as late as allowed
};

// A scalar or pointer parameter of a kernel, as the host passed it.
struct Argument {
  enum Kind : int64_t { kInteger = 0, kFloat = 1, kPointer = 2 } kind;
  union {
    int64_t integer;
    double real;
    void* pointer;
  };
};

// A copy that this thread issued and that has not landed.
struct PendingCopy {
  void* to;
  const void* from;
  int bytes;
};

struct Thread {
  Index index;
  int id, lane, warp;
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

extern Thread* self;
extern Index block_index, block_dim, grid_dim;
extern Options options;

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

void* dynamic_shared();
int threads_in_block();
Thread& thread(int id);

// Fails unless [address, address + bytes) is shared memory and aligned.
void check_shared(const void* address, size_t bytes, size_t alignment, const char* what);

// The 32-bit addresses of shared memory that instructions use.
uint32_t shared_address(const void* pointer);
char* shared_pointer(uint32_t address);

// The 128-byte swizzle: the 16-byte chunk of a 128-byte row is exchanged with the row's number.
inline uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

// Gives the processor away until wake(on) is called.
void wait_for(const char* what, int line, const void* on);
void wake(const void* on);

// Runs when every thread waits: the latest moment for asynchronous work to be done.
void at_standstill(std::function<void()> work);

// bar.sync, bar.arrive: barrier 0 with all threads is __syncthreads().
void barrier(int id, int threads, bool waits, int line);
int barrier_count(int predicate, int line);

// A rendezvous of the lanes of `mask`: `combine` runs once, when the last of them has come.
// `payloads[lane]` point into the stacks of the lanes; those not in the mask are null.
using Combine = void (*)(void** payloads, unsigned mask);
void warp_collective(unsigned mask, const char* name, int line, void* payload, Combine combine);
unsigned lanes_of_warp(); // those that exist

struct WarpgroupProduct;
std::vector<std::shared_ptr<WarpgroupProduct>>& warpgroup_products(int group);

using Body = void (*)(const void* context);
int launch(Body body, const void* context, const unsigned* grid_and_block, size_t dynamic_bytes,
           const Options* how, char* static_shared, size_t static_bytes, char* message,
           size_t message_bytes);

} // namespace tbn_emulator
