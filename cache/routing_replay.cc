#include "cache/routing_replay.h"

#include <algorithm>
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
  std::vector<int> experts;
  LayerDemand demand;
  for (const LayerRouting& routing : trace.layers) {
    cache.Observe(routing.layer, routing.experts);
    experts.resize(routing.experts.size());
    std::transform(routing.experts.begin(), routing.experts.end(), experts.begin(),
                   [](const ExpertLoad& load) { return load.expert; });
    cache.Demand(routing.layer, experts, &demand);
    for (;; cache.DemandDeferred(&demand)) {
      for (const Grant& grant : demand.grants) {
        if (grant.to_fill) cache.Filled(grant.slot, grant.generation);
      }
      if (demand.deferred.empty()) break;
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
