#include <cstring>

#include "fibers.h"

#include "collectives.h"

namespace tbn_emulator {

namespace {

struct Vote {
  unsigned long long value;
  unsigned result;
};

Vote& vote(void** payloads, int lane) { return *static_cast<Vote*>(payloads[lane]); }

bool takes_part(unsigned mask, int lane) { return mask >> lane & 1; }

template <class F>
void combine_votes(void** payloads, unsigned mask, F fold) {
  bool first = true;
  unsigned result = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (!takes_part(mask, lane)) continue;
    const auto value = static_cast<unsigned>(vote(payloads, lane).value);
    result = first ? value : fold(result, value);
    first = false;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (takes_part(mask, lane)) vote(payloads, lane).result = result;
  }
}

} // namespace

void sync_warp(int line, unsigned mask) {
  warp_collective(mask, "__syncwarp", line, nullptr, [](void**, unsigned) {});
}

unsigned ballot(int line, unsigned mask, int predicate) {
  Vote own{predicate ? 1ull << self->lane : 0ull, 0};
  warp_collective(mask, "__ballot_sync", line, &own, [](void** payloads, unsigned lanes) {
    combine_votes(payloads, lanes, [](unsigned a, unsigned b) { return a | b; });
  });
  return own.result;
}

unsigned match_any(int line, unsigned mask, unsigned long long value) {
  Vote own{value, 0};
  warp_collective(mask, "__match_any_sync", line, &own, [](void** payloads, unsigned lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int peer = 0; takes_part(lanes, lane) && peer < 32; ++peer) {
        if (takes_part(lanes, peer) && vote(payloads, peer).value == vote(payloads, lane).value) {
          vote(payloads, lane).result |= 1u << peer;
        }
      }
    }
  });
  return own.result;
}

unsigned reduce(int line, const char* name, unsigned mask, unsigned value) {
  Vote own{value, 0};
  Combine combine;
  if (strstr(name, "add")) {
    combine = [](void** payloads, unsigned lanes) {
      combine_votes(payloads, lanes, [](unsigned a, unsigned b) { return a + b; });
    };
  } else if (strstr(name, "or_") && !strstr(name, "xor")) {
    combine = [](void** payloads, unsigned lanes) {
      combine_votes(payloads, lanes, [](unsigned a, unsigned b) { return a | b; });
    };
  } else if (strstr(name, "and")) {
    combine = [](void** payloads, unsigned lanes) {
      combine_votes(payloads, lanes, [](unsigned a, unsigned b) { return a & b; });
    };
  } else {
    combine = [](void** payloads, unsigned lanes) {
      combine_votes(payloads, lanes, [](unsigned a, unsigned b) { return a ^ b; });
    };
  }
  warp_collective(mask, name, line, &own, combine);
  return own.result;
}

unsigned active_mask() {
  unsigned mask = 0;
  for (int lane = 0; lane < 32; ++lane) {
    const int id = self->warp * 32 + lane;
    if (id < threads_in_block() && !fiber(id).finished) mask |= 1u << lane;
  }
  return mask;
}

} // namespace tbn_emulator
