// Which experts are resident, in which of a fixed number of slots, and who may use them now.
//
// The cache decides and keeps count; it never touches a byte of a weight. One state machine has two
// drivers (docs/DESIGN.md):
//  - host-driven (CPU, CUDA prefill): Demand pins what is resident and hands out slots to fill; the
//    caller fills them, reports Filled or FillFailed, and lets the pins go.
//  - device-driven (CUDA decode): the host publishes numbered tables and replays the device's
//    traces.
// Owned by the engine, used by the engine thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cache/expert_key.h"

namespace moed::cache {

struct ExpertCacheOptions {
  // Experts of each layer; 0 for a layer without a router.
  std::vector<int> experts_per_layer;
  int top_k = 0;
  // Slots in all: the budget over the bytes of one expert.
  int num_slots = 0;
  // lru | lfu | static | recency-frequency (the default)
  std::string policy = "recency-frequency";
};

// A slot that holds, or is to hold, one expert for as long as the pin lives.
// Move-only; letting it go unpins. It must not outlive its cache.
class ExpertPin;

// What Demand gives for one expert.
struct Grant {
  ExpertKey key;
  int32_t slot = -1;
  uint32_t generation = 0;  // of the slot; a fill for an older one is stale
  bool resident = false;    // false: the caller fills the slot, then calls Filled
};

}  // namespace moed::cache
