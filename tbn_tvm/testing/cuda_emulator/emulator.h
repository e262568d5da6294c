// Included before the CUDA C++ that TVM emits, which then compiles with g++ and runs on the CPU.
#pragma once

#define TBN_EMULATED 1

#include <cfloat>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <utility>

#include "scheduler.h"

#include "vectors.h"

#include "narrow_floats.h"

#include "builtins.h"

#include "collectives.h"

#include "instructions.h"

#include "async_copies.h"

#include "wgmma.h"

namespace tbn_emulator {

template <class T>
T parameter(const Argument& argument) {
  if constexpr (std::is_pointer_v<T>) {
    return static_cast<T>(argument.pointer);
  } else if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(argument.integer);
  } else if constexpr (std::is_class_v<T> && sizeof(T) == 128) {
    return *static_cast<const T*>(argument.pointer); // a tensor map, by value
  } else {
    return static_cast<T>(argument.kind == Argument::kFloat ? argument.real : argument.integer);
  }
}

template <class... Parameters>
struct Call {
  void (*kernel)(Parameters...);
  const Argument* arguments;

  template <size_t... I>
  void with(std::index_sequence<I...>) const {
    kernel(parameter<std::remove_const_t<Parameters>>(arguments[I])...);
  }
  static void run(const void* context) {
    static_cast<const Call*>(context)->with(std::index_sequence_for<Parameters...>{});
  }
};

template <class... Parameters>
int launch_kernel(void (*kernel)(Parameters...), const Argument* arguments, int count,
                  const unsigned* grid_and_block, size_t dynamic_bytes, const Options* how,
                  char* shared, char* shared_end, char* message, size_t message_bytes) {
  if (count != int(sizeof...(Parameters))) {
    snprintf(message, message_bytes, "%d arguments for %d parameters", count,
             int(sizeof...(Parameters)));
    return 1;
  }
  const Call<Parameters...> call{kernel, arguments};
  return launch(&Call<Parameters...>::run, &call, grid_and_block, dynamic_bytes, how,
                shared, shared_end - shared, message, message_bytes);
}

} // namespace tbn_emulator

// The __shared__ variables of a kernel are a section of their own, whose ends the linker names.
#define TBN_SHARED_OF(NAME) static __attribute__((section("tbn_shared_" #NAME)))

#define TBN_EMULATED_KERNEL(NAME)                                                                \
  extern "C" char __start_tbn_shared_##NAME[] __attribute__((weak, visibility("hidden")));       \
  extern "C" char __stop_tbn_shared_##NAME[] __attribute__((weak, visibility("hidden")));        \
  extern "C" __attribute__((visibility("default"))) int tbn_launch_##NAME(                       \
      const tbn_emulator::Argument* arguments, int count, const unsigned* grid_and_block,        \
      size_t dynamic_bytes, const tbn_emulator::Options* how, char* message,                     \
      size_t message_bytes) {                                                                    \
    return tbn_emulator::launch_kernel(&NAME, arguments, count, grid_and_block, dynamic_bytes,   \
                                       how, __start_tbn_shared_##NAME, __stop_tbn_shared_##NAME, \
                                       message, message_bytes);                                  \
  }

// The language.
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __grid_constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// nvcc takes `__shared__ alignas(64) float x[4]`; g++ takes alignas in other places only.
#define alignas(bytes) __attribute__((aligned(bytes)))

inline size_t __cvta_generic_to_shared(const void* pointer) {
  return tbn_emulator::shared_address(pointer);
}

#define threadIdx (::tbn_emulator::self->index)
#define blockIdx (::tbn_emulator::block_index)
#define blockDim (::tbn_emulator::block_dim)
#define gridDim (::tbn_emulator::grid_dim)
#define warpSize 32
