// Barriers and warp collectives. The names are macros so that reports tell the line.
#pragma once

namespace tbn_emulator {

template <class T>
struct Shuffle {
  T value;    // given, then received
  int source; // lane
};

template <class T>
void combine_shuffles(void** payloads, unsigned mask) {
  T values[32];
  const auto at = [&](int lane) { return static_cast<Shuffle<T>*>(payloads[lane]); };
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) values[lane] = at(lane)->value;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const int source = at(lane)->source;
    if (mask >> source & 1) {
      at(lane)->value = values[source];
    } else {
      memset(&at(lane)->value, 0xff, sizeof(T)); // undefined: the source does not take part
    }
  }
}

template <class T>
T shuffle_from(unsigned mask, T value, int source, const char* name, int line) {
  Shuffle<T> payload{value, source};
  warp_collective(mask, name, line, &payload, &combine_shuffles<T>);
  return payload.value;
}

// Lanes exchange values inside segments of `width` lanes; a source outside is the lane itself.
template <class T>
T shuffle(int line, unsigned mask, T value, int source, int width = 32) {
  const int first = self->lane & ~(width - 1);
  return shuffle_from(mask, value, first + (source & (width - 1)), "__shfl_sync", line);
}
template <class T>
T shuffle_up(int line, unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = self->lane, source = lane - int(delta);
  const bool inside = source >= (lane & ~(width - 1));
  return shuffle_from(mask, value, inside ? source : lane, "__shfl_up_sync", line);
}
template <class T>
T shuffle_down(int line, unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = self->lane, source = lane + int(delta);
  const bool inside = source < (lane & ~(width - 1)) + width;
  return shuffle_from(mask, value, inside ? source : lane, "__shfl_down_sync", line);
}
template <class T>
T shuffle_xor(int line, unsigned mask, T value, int bits, int width = 32) {
  const int lane = self->lane, source = lane ^ bits;
  const bool inside = source < (lane & ~(width - 1)) + width;
  return shuffle_from(mask, value, inside ? source : lane, "__shfl_xor_sync", line);
}

void sync_warp(int line, unsigned mask = ~0u);
unsigned ballot(int line, unsigned mask, int predicate);
unsigned match_any(int line, unsigned mask, unsigned long long value);
unsigned reduce(int line, const char* name, unsigned mask, unsigned value);
unsigned active_mask();

} // namespace tbn_emulator

#define __syncthreads()                                                                          \
  (::tbn_emulator::barrier(0, ::tbn_emulator::threads_in_block(), true, __LINE__))
#define __syncthreads_count(predicate) (::tbn_emulator::barrier_count(!!(predicate), __LINE__))
#define __syncthreads_or(predicate) (__syncthreads_count(predicate) != 0)
#define __syncthreads_and(predicate)                                                             \
  (__syncthreads_count(predicate) == ::tbn_emulator::threads_in_block())
#define tbn_barrier_sync(id, threads) (::tbn_emulator::barrier(id, threads, true, __LINE__))
#define tbn_barrier_arrive(id, threads) (::tbn_emulator::barrier(id, threads, false, __LINE__))

#define __syncwarp(...) (::tbn_emulator::sync_warp(__LINE__, ##__VA_ARGS__))
#define __shfl_sync(...) (::tbn_emulator::shuffle(__LINE__, __VA_ARGS__))
#define __shfl_up_sync(...) (::tbn_emulator::shuffle_up(__LINE__, __VA_ARGS__))
#define __shfl_down_sync(...) (::tbn_emulator::shuffle_down(__LINE__, __VA_ARGS__))
#define __shfl_xor_sync(...) (::tbn_emulator::shuffle_xor(__LINE__, __VA_ARGS__))
#define __ballot_sync(mask, predicate) (::tbn_emulator::ballot(__LINE__, mask, !!(predicate)))
#define __any_sync(mask, predicate) (__ballot_sync(mask, predicate) != 0)
#define __all_sync(mask, predicate) (__ballot_sync(mask, !(predicate)) == 0)
#define __match_any_sync(mask, value) (::tbn_emulator::match_any(__LINE__, mask, value))
#define __reduce_add_sync(mask, value)                                                           \
  (::tbn_emulator::reduce(__LINE__, "__reduce_add_sync", mask, value))
#define __reduce_or_sync(mask, value)                                                            \
  (::tbn_emulator::reduce(__LINE__, "__reduce_or_sync", mask, value))
#define __reduce_and_sync(mask, value)                                                           \
  (::tbn_emulator::reduce(__LINE__, "__reduce_and_sync", mask, value))
#define __reduce_xor_sync(mask, value)                                                           \
  (::tbn_emulator::reduce(__LINE__, "__reduce_xor_sync", mask, value))
#define __activemask() (::tbn_emulator::active_mask())
