#include "cache/routing_replay.h"

#include <utility>
#include <vector>

namespace moed::cache {
namespace {

HitCount Count(const CacheStats& stats) {
  HitCount count;
  for (const LayerStats& layer : stats.layers) {
    count.hits += layer.hits_total;
    count.misses += layer.misses_total;
  }
  return count;
}

}  // namespace

void ReplayStep(const RoutingTrace& trace, ExpertCache& cache) {
  cache.BeginStep();
  std::vector<int> pending;
  for (const LayerRouting& routing : trace.layers) {
    cache.Observe(routing.layer, routing.experts);
    pending.clear();
    for (const ExpertLoad& load : routing.experts) pending.push_back(load.expert);
    while (!pending.empty()) {
      DemandResult wave = cache.Demand(routing.layer, pending);
      for (const Grant& grant : wave.grants) {
        if (grant.to_fill) cache.Filled(grant.slot, grant.generation);
      }
      pending = std::move(wave.deferred);
    }
  }
}

HitCount Replay(std::span<const RoutingTrace> traces, ExpertCache& cache) {
  const HitCount before = Count(cache.Stats());
  for (const RoutingTrace& trace : traces) ReplayStep(trace, cache);
  const HitCount after = Count(cache.Stats());
  return {.hits = after.hits - before.hits, .misses = after.misses - before.misses};
}

}  // namespace moed::cache
