// What the undefined-behaviour checks that the compiler put into a kernel call.
//
// The names and the layout of what they are given are the compilers' common interface; each
// description begins with where in the source the check stands.
#include "scheduler.h"

namespace {

struct Place {
  const char* file;
  uint32_t line, column;
};

struct Access { // of a type mismatch
  Place place;
  const void* type;
  unsigned char log2_alignment;
  unsigned char kind;
};

} // namespace

extern "C" {

void __ubsan_handle_type_mismatch_v1_abort(const Access* access, uintptr_t address) {
  tbn_emulator::fail("misaligned access: address %#zx is not a multiple of %d bytes, line %u",
                     static_cast<size_t>(address), 1 << access->log2_alignment,
                     access->place.line);
}

void __ubsan_handle_out_of_bounds_abort(const Place* place, uintptr_t index) {
  tbn_emulator::fail("index %td out of bounds, line %u", static_cast<ptrdiff_t>(index),
                     place->line);
}

void __ubsan_handle_divrem_overflow_abort(const Place* place, uintptr_t, uintptr_t) {
  tbn_emulator::fail("division by zero, line %u", place->line);
}

void __ubsan_handle_shift_out_of_bounds_abort(const Place* place, uintptr_t, uintptr_t by) {
  tbn_emulator::fail("shift by %td bits, line %u", static_cast<ptrdiff_t>(by), place->line);
}
}
