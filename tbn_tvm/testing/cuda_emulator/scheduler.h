// Blocks of CUDA threads as fibers of one operating-system thread.
//
// A thread runs until it has to wait, then the next one runs: that order is legal on a GPU and
// unkind to kernels that lack a barrier. Whatever a kernel does wrong ends the launch with a
// message; it never ends the process.
#pragma once

#include <cstddef>
#include <cstdint>

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

struct Thread {
  Index index;
  int id, lane, warp;
};

extern Thread* self;
extern Index block_index, block_dim, grid_dim;
extern Options options;

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

void* dynamic_shared();
int threads_in_block();

// The 32-bit address of shared memory that instructions use.
uint32_t shared_address(const void* pointer);

// bar.sync, bar.arrive: barrier 0 with all threads is __syncthreads().
void barrier(int id, int threads, bool waits, int line);
int barrier_count(int predicate, int line);

// A rendezvous of the lanes of `mask`: `combine` runs once, when the last of them has come.
// `payloads[lane]` point into the stacks of the lanes; those not in the mask are null.
using Combine = void (*)(void** payloads, unsigned mask);
void warp_collective(unsigned mask, const char* name, int line, void* payload, Combine combine);
unsigned lanes_of_warp(); // those that exist

using Body = void (*)(const void* context);
int launch(Body body, const void* context, const unsigned* grid_and_block, size_t dynamic_bytes,
           const Options* how, char* static_shared, size_t static_bytes, char* message,
           size_t message_bytes);

} // namespace tbn_emulator
