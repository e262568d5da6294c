#include "scheduler.h"

#include <dlfcn.h>
#include <execinfo.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>

#include "fibers.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace tbn_emulator {

Thread* self = nullptr;
Index block_index, block_dim, grid_dim;
Options options;

namespace {

constexpr size_t kStackBytes = 512 << 10;
constexpr size_t kMaxThreads = 1024;
constexpr size_t kMaxDynamicShared = 227 << 10;
constexpr size_t kMaxStaticShared = 48 << 10;
constexpr size_t kSharedReserved = 1024; // the first bytes of shared memory are the system's
constexpr size_t kSharedAlignment = 64;  // of dynamic shared memory, as TVM declares it
constexpr size_t kSwizzlePeriod = 1024;  // alignments up to this show in the pointers, too
constexpr int kBarriers = 16;

struct Stopped {}; // thrown by work that runs outside of any thread

struct Barrier {
  int arrived = 0;
  int threads = 0;
  int predicates = 0;
  int result = 0;
};

struct Rendezvous {
  int warp;
  unsigned mask;
  unsigned arrived;
  const char* name;
  void* payloads[32];
};

struct Block {
  std::vector<Fiber> threads;
  std::vector<Fiber*> ready;
  std::vector<Rendezvous> meetings;
  std::vector<std::function<void()>> late_work;
  Barrier barriers[kBarriers];
  std::vector<std::shared_ptr<WarpgroupProduct>> products[kMaxThreads / 128];
  int unfinished = 0;
};

Block* block = nullptr;
Body kernel_body = nullptr;
const void* kernel_context = nullptr;
std::string failure;
bool failed = false;
char* shared_dynamic = nullptr;
size_t shared_dynamic_bytes = 0;
char* shared_static = nullptr;
size_t shared_static_bytes = 0;
char* stacks = nullptr;

// Where dynamic shared memory starts: behind the static one.
size_t dynamic_address() {
  const size_t past = kSharedReserved + shared_static_bytes;
  return (past + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment;
}

// Fibers ---------------------------------------------------------------------------------------

void fiber_main();

#if defined(__x86_64__)

extern "C" void tbn_emulator_switch(void** from, void* to);

// Saves the callee-saved registers; the rest belongs to the caller anyway.
asm(R"(
.text
.p2align 4
.type tbn_emulator_switch, @function
tbn_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size tbn_emulator_switch, .-tbn_emulator_switch
)");

void* scheduler_stack_pointer;

void prepare(Fiber& thread, char* stack) {
  // What the switch pops: six registers and where to return to. A function expects its stack
  // to be 8 past a multiple of 16 at its first instruction.
  void** top = reinterpret_cast<void**>(stack + kStackBytes) - 1;
  *top = nullptr;
  *--top = reinterpret_cast<void*>(&fiber_main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  thread.stack_pointer = top;
}

void enter(Fiber& thread) { tbn_emulator_switch(&scheduler_stack_pointer, thread.stack_pointer); }

void leave() { tbn_emulator_switch(&own().stack_pointer, scheduler_stack_pointer); }

#else

ucontext_t scheduler_context;
std::vector<ucontext_t> contexts(kMaxThreads);

void prepare(Fiber& thread, char* stack) {
  ucontext_t& context = contexts[thread.id];
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, &fiber_main, 0);
}

void enter(Fiber& thread) { swapcontext(&scheduler_context, &contexts[thread.id]); }

void leave() { swapcontext(&contexts[self->id], &scheduler_context); }

#endif

void fiber_main() {
  kernel_body(kernel_context);
  own().finished = true;
  --block->unfinished;
  leave();
  __builtin_unreachable();
}

bool make_stacks() {
  if (stacks) return true;
  void* memory = mmap(nullptr, kMaxThreads * kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return false;
  stacks = static_cast<char*>(memory);
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (size_t i = 0; i < kMaxThreads; ++i) mprotect(stacks + i * kStackBytes, page, PROT_NONE);
  return true;
}

// Faults ---------------------------------------------------------------------------------------

// Reads and writes outside of an array hit its guard page, which ends the launch.

sigjmp_buf after_fault;
constexpr int kFaults[] = {SIGSEGV, SIGBUS};

uintptr_t base_of(const void* code) {
  Dl_info object;
  return dladdr(code, &object) ? reinterpret_cast<uintptr_t>(object.dli_fbase) : 0;
}

// Where in the kernel's library this is, possibly some calls further out; 0 if unknown.
size_t place_in_kernel() {
  void* frames[64];
  const int depth = backtrace(frames, 64);
  const uintptr_t base = base_of(reinterpret_cast<const void*>(kernel_body));
  for (int i = 0; i < depth; ++i) {
    if (base && base_of(frames[i]) == base) return reinterpret_cast<uintptr_t>(frames[i]) - base;
  }
  return 0;
}

void on_fault(int signal, siginfo_t* info, void*) {
  if (!block) { // not the kernel's doing
    ::signal(signal, SIG_DFL);
    return;
  }
  char text[256];
  if (self) {
    snprintf(text, sizeof text, "access outside of any array (address %p, thread %d) at code+%#zx",
             info->si_addr, self->id, place_in_kernel());
  } else {
    snprintf(text, sizeof text, "access outside of any array (address %p) by an asynchronous copy",
             info->si_addr);
  }
  failure = text;
  failed = true;
  siglongjmp(after_fault, 1);
}

class FaultHandlers {
 public:
  FaultHandlers() {
    void* frame;
    backtrace(&frame, 1); // loads the unwinder, which a signal handler had better not do
    stack_t stack{};
    stack.ss_sp = stack_;
    stack.ss_size = sizeof stack_;
    sigaltstack(&stack, &old_stack_);
    struct sigaction action {};
    action.sa_sigaction = &on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 2; ++i) sigaction(kFaults[i], &action, &old_[i]);
  }
  ~FaultHandlers() {
    for (int i = 0; i < 2; ++i) sigaction(kFaults[i], &old_[i], nullptr);
    sigaltstack(&old_stack_, nullptr);
  }

 private:
  alignas(16) char stack_[64 << 10];
  stack_t old_stack_;
  struct sigaction old_[2];
};

// One block ------------------------------------------------------------------------------------

void describe_deadlock() {
  struct Place {
    const char* what;
    int line, threads, first;
  };
  std::vector<Place> places;
  int finished = 0;
  for (const Fiber& thread : block->threads) {
    if (thread.finished) {
      ++finished;
      continue;
    }
    const auto same = std::find_if(places.begin(), places.end(), [&](const Place& place) {
      return place.line == thread.waits_at_line && !strcmp(place.what, thread.waits_for);
    });
    if (same == places.end()) {
      places.push_back({thread.waits_for, thread.waits_at_line, 1, thread.id});
    } else {
      ++same->threads;
    }
  }
  failure = "deadlock:";
  for (const Place& place : places) {
    failure += " " + std::to_string(place.threads) + " threads (first: " +
               std::to_string(place.first) + ") wait at " + place.what;
    if (place.line) failure += ", line " + std::to_string(place.line);
    failure += ";";
  }
  failure += " " + std::to_string(finished) + " have finished";
  failed = true;
}

uint64_t random_state;

// xorshift: the same threads in the same order for the same seed, on every machine.
uint64_t random_below(uint64_t bound) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state % bound;
}

void arrange(std::vector<Fiber*>& round) {
  if (options.order == kReverse) {
    std::sort(round.begin(), round.end(), [](Fiber* a, Fiber* b) { return a->id > b->id; });
  } else if (options.order == kShuffled) {
    for (size_t i = round.size(); i > 1; --i) std::swap(round[i - 1], round[random_below(i)]);
  }
}

void run_block() {
  const int count = static_cast<int>(block_dim.x * block_dim.y * block_dim.z);
  Block state;
  block = &state;
  state.threads.resize(count);
  state.unfinished = count;
  for (int id = 0; id < count; ++id) {
    Fiber& thread = state.threads[id];
    const unsigned plane = id / block_dim.x;
    thread.index = {id % block_dim.x, plane % block_dim.y, plane / block_dim.y};
    thread.id = id;
    thread.lane = id % 32;
    thread.warp = id / 32;
    prepare(thread, stacks + id * kStackBytes);
    state.ready.push_back(&thread);
  }
  std::vector<Fiber*> round;
  if (sigsetjmp(after_fault, 0)) self = nullptr;
  while (state.unfinished && !failed) {
    if (state.ready.empty()) {
      if (state.late_work.empty()) {
        describe_deadlock();
        break;
      }
      auto work = std::move(state.late_work.front());
      state.late_work.erase(state.late_work.begin());
      try {
        work();
      } catch (const Stopped&) {
      }
      continue;
    }
    round.clear();
    round.swap(state.ready);
    arrange(round);
    for (Fiber* thread : round) {
      self = thread;
      enter(*thread);
      self = nullptr;
      if (failed) break;
    }
  }
  block = nullptr;
}

} // namespace

// For the instructions -------------------------------------------------------------------------

void fail(const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  failure = text;
  if (self) {
    failure += " (thread " + std::to_string(self->id) + ")";
    failed = true;
    leave(); // for good
    __builtin_unreachable();
  }
  failed = true;
  throw Stopped{};
}

void* dynamic_shared() { return shared_dynamic; }

int threads_in_block() { return static_cast<int>(block->threads.size()); }

Fiber& fiber(int id) { return block->threads[id]; }

void check_shared(const void* address, size_t bytes, size_t alignment, const char* what) {
  const auto from = reinterpret_cast<uintptr_t>(address);
  const auto inside = [&](const char* start, size_t size) {
    const auto base = reinterpret_cast<uintptr_t>(start);
    return from >= base && from + bytes <= base + size;
  };
  if (!inside(shared_dynamic, shared_dynamic_bytes) &&
      !inside(shared_static, shared_static_bytes)) {
    fail("%s: %zu bytes at offset %td of dynamic shared memory (%zu bytes) are not shared memory",
         what, bytes, static_cast<const char*>(address) - shared_dynamic, shared_dynamic_bytes);
  }
  if (from % alignment) {
    fail("%s: shared address %#x is not a multiple of %zu bytes", what, shared_address(address),
         alignment);
  }
}

uint32_t shared_address(const void* pointer) {
  const char* at = static_cast<const char*>(pointer);
  if (at >= shared_static && at < shared_static + shared_static_bytes) {
    return static_cast<uint32_t>(kSharedReserved + (at - shared_static));
  }
  if (at < shared_dynamic || at > shared_dynamic + shared_dynamic_bytes) {
    fail("%p is not in shared memory", pointer);
  }
  return static_cast<uint32_t>(dynamic_address() + (at - shared_dynamic));
}

char* shared_pointer(uint32_t address) {
  if (address >= dynamic_address() && address - dynamic_address() < shared_dynamic_bytes) {
    return shared_dynamic + (address - dynamic_address());
  }
  if (address >= kSharedReserved && address - kSharedReserved < shared_static_bytes) {
    return shared_static + (address - kSharedReserved);
  }
  fail("shared address %#x is past the end of shared memory", address);
}

std::vector<std::shared_ptr<WarpgroupProduct>>& warpgroup_products(int group) {
  return block->products[group];
}

void wait_for(const char* what, int line, const void* on) {
  own().waits_for = what;
  own().waits_at_line = line;
  own().waits_on = on;
  leave();
}

void wake(const void* on) {
  for (Fiber& thread : block->threads) {
    if (!thread.finished && thread.waits_on == on) {
      thread.waits_on = nullptr;
      block->ready.push_back(&thread);
    }
  }
}

void at_standstill(std::function<void()> work) { block->late_work.push_back(std::move(work)); }

void barrier(int id, int threads, bool waits, int line) {
  if (id < 0 || id >= kBarriers) fail("barrier %d: there are %d", id, kBarriers);
  if (threads != threads_in_block() && threads % 32) {
    fail("barrier %d: %d threads are not whole warps", id, threads);
  }
  Barrier& state = block->barriers[id];
  if (state.arrived && state.threads != threads) {
    fail("barrier %d: %d threads here, %d where others wait", id, threads, state.threads);
  }
  state.threads = threads;
  // The instruction is `.aligned`: a warp's threads have to come to the same one.
  const int past = std::min(self->warp * 32 + 32, threads_in_block());
  for (int peer = self->warp * 32; waits && peer < past; ++peer) {
    const Fiber& other = block->threads[peer];
    if (!other.finished && other.waits_on == &state && other.waits_at_line != line) {
      fail("barrier %d: threads of one warp wait at lines %d and %d", id, other.waits_at_line,
           line);
    }
  }
  if (++state.arrived < threads) {
    if (waits) wait_for(id ? "a named barrier" : "__syncthreads", line, &state);
    return;
  }
  state.arrived = 0;
  state.result = state.predicates;
  state.predicates = 0;
  wake(&state);
}

int barrier_count(int predicate, int line) {
  Barrier& state = block->barriers[0];
  state.predicates += predicate != 0;
  barrier(0, threads_in_block(), true, line);
  return state.result;
}

unsigned lanes_of_warp() {
  const int lanes = std::min(32, threads_in_block() - self->warp * 32);
  return lanes == 32 ? ~0u : (1u << lanes) - 1;
}

void warp_collective(unsigned mask, const char* name, int line, void* payload, Combine combine) {
  mask &= lanes_of_warp();
  if (!(mask >> self->lane & 1)) fail("%s: lane %d is not in its mask %#x", name, self->lane, mask);
  auto& meetings = block->meetings;
  // Lanes that diverged may wait for others at different instructions at the same time.
  auto meeting = std::find_if(meetings.begin(), meetings.end(), [&](const Rendezvous& candidate) {
    return candidate.warp == self->warp && candidate.mask == mask &&
           (candidate.name == name || !strcmp(candidate.name, name));
  });
  if (meeting == meetings.end()) {
    meetings.push_back({self->warp, mask, 0, name, {}});
    meeting = meetings.end() - 1;
  }
  meeting->arrived |= 1u << self->lane;
  meeting->payloads[self->lane] = payload;
  if (meeting->arrived != mask) {
    // The address of a payload is a name that no other waiting thread has.
    wait_for(name, line, payload ? payload : self);
    return;
  }
  const Rendezvous complete = *meeting;
  meetings.erase(meeting);
  combine(const_cast<void**>(complete.payloads), mask);
  for (int lane = 0; lane < 32; ++lane) {
    if (lane == self->lane || !(mask >> lane & 1)) continue;
    Fiber& peer = block->threads[self->warp * 32 + lane];
    peer.waits_on = nullptr;
    block->ready.push_back(&peer);
  }
}

// A launch -------------------------------------------------------------------------------------

int launch(Body body, const void* context, const unsigned* grid_and_block, size_t dynamic_bytes,
           const Options* how, char* static_shared, size_t static_bytes, char* message,
           size_t message_bytes) {
  const unsigned* size = grid_and_block;
  failed = false;
  failure.clear();
  self = nullptr;
  const auto refuse = [&](const char* text, size_t given) {
    snprintf(message, message_bytes, "%s: %zu", text, given);
    return 1;
  };
  for (int axis = 0; axis < 6; ++axis) {
    if (!size[axis]) return refuse("a grid or block of size zero along axis", axis);
  }
  const size_t count = size_t{size[3]} * size[4] * size[5];
  if (count > kMaxThreads) return refuse("more than 1024 threads in a block", count);
  if (size[5] > 64) return refuse("more than 64 threads along z", size[5]);
  if (size[0] > 0x7fffffffu) return refuse("more than 2147483647 blocks along x", size[0]);
  if (size[1] > 65535) return refuse("more than 65535 blocks along y", size[1]);
  if (size[2] > 65535) return refuse("more than 65535 blocks along z", size[2]);
  if (static_bytes > kMaxStaticShared) {
    return refuse("more than 49152 bytes of static shared memory", static_bytes);
  }
  if (dynamic_bytes + static_bytes > kMaxDynamicShared) {
    return refuse("more than 232448 bytes of shared memory", dynamic_bytes + static_bytes);
  }
  if (!make_stacks()) return refuse("no memory for stacks, bytes", kMaxThreads * kStackBytes);

  // Dynamic shared memory ends at a guard page, but for the bytes that its alignment takes. They
  // do not belong to the kernel and are checked after each block.
  shared_static = static_shared;
  shared_static_bytes = static_bytes;
  shared_dynamic_bytes = dynamic_bytes;
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t past = dynamic_address() + dynamic_bytes;
  const size_t room = dynamic_bytes + (kSwizzlePeriod - past % kSwizzlePeriod) % kSwizzlePeriod;
  const size_t mapped = (room + page - 1) / page * page + 2 * page;
  void* memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return refuse("no memory for shared memory, bytes", mapped);
  char* base = static_cast<char*>(memory);
  mprotect(base, page, PROT_NONE);
  mprotect(base + mapped - page, page, PROT_NONE);
  shared_dynamic = base + mapped - page - room;

  options = *how;
  grid_dim = {size[0], size[1], size[2]};
  block_dim = {size[3], size[4], size[5]};
  kernel_body = body;
  kernel_context = context;
  random_state = 0x9e3779b97f4a7c15u + static_cast<uint64_t>(options.seed);
  const FaultHandlers handlers;
  for (unsigned z = 0; z < grid_dim.z && !failed; ++z) {
    for (unsigned y = 0; y < grid_dim.y && !failed; ++y) {
      for (unsigned x = 0; x < grid_dim.x && !failed; ++x) {
        block_index = {x, y, z};
        memset(shared_dynamic, 0xff, room);
        memset(static_shared, 0xff, static_bytes);
        run_block();
        for (size_t i = dynamic_bytes; i < room && !failed; ++i) {
          if (shared_dynamic[i] != char(0xff)) {
            failure = "dynamic shared memory written " + std::to_string(i - dynamic_bytes) +
                      " bytes past its end (" + std::to_string(dynamic_bytes) + " bytes)";
            failed = true;
          }
        }
      }
    }
  }
  munmap(memory, mapped);
  if (!failed) return 0;
  snprintf(message, message_bytes, "block (%u, %u, %u): %s", block_index.x, block_index.y,
           block_index.z, failure.c_str());
  return 1;
}

} // namespace tbn_emulator
