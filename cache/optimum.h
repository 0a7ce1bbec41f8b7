// The hit rate that no policy can beat: Belady's optimum for steps that touch several experts at
// once. For simulations; knows the future.
//
// An expert kept from one use to the next saves one miss and occupies one slot in between, so the
// best cache keeps the largest set of such intervals of which at most num_slots overlap. Dropping
// the one that ends last whenever there are too many is optimal for that (Carlisle and Lloyd, "On
// the k-coloring of intervals", 1995). It follows that an expert just used may be dropped at once
// and a miss need not be admitted.
#pragma once

#include <cstdint>
#include <span>

#include "cache/expert_index.h"
#include "cache/routing_trace.h"

namespace moed::cache {

struct HitCount {
  int64_t hits = 0;
  int64_t misses = 0;
  double hit_rate() const {
    return hits + misses == 0 ? 0 : static_cast<double>(hits) / static_cast<double>(hits + misses);
  }
};

// With one pool of `num_slots` residents for all layers, which run in the order of the traces.
HitCount OptimumOnePool(const ExpertIndex& index, int num_slots,
                        std::span<const RoutingTrace> traces);
// With `slots_per_layer` residents in each layer.
HitCount OptimumPerLayer(const ExpertIndex& index, int slots_per_layer,
                         std::span<const RoutingTrace> traces);

}  // namespace moed::cache
