#include "cache/simulation.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>

#include "cache/expert_index.h"
#include "cache/routing_replay.h"
#include "cache/slot_floors.h"

namespace moed::cache {
namespace {

int LayersWithExperts(const SimulatedModel& model) {
  return static_cast<int>(std::count_if(model.experts_per_layer.begin(),
                                        model.experts_per_layer.end(),
                                        [](int experts) { return experts > 0; }));
}

// The nearest number of which every layer gets the same.
int Divisible(const SimulatedModel& model, int residents, SlotDivision division) {
  if (division == SlotDivision::kByWorth) return residents;
  const int layers = std::max(LayersWithExperts(model), 1);
  return (residents + layers / 2) / layers * layers;
}

// The smallest budget that leaves `residents` beside its scratch slots.
int SlotsFor(const SimulatedModel& model, int residents) {
  const ExpertIndex index(model.experts_per_layer);
  int slots = residents;
  while (slots - ScratchSlots(index, model.top_k, slots) < residents) ++slots;
  return slots;
}

void Preload(std::span<const ExpertKey> keys, int residents, ExpertCache& cache) {
  for (ExpertKey key : keys.first(std::min<size_t>(keys.size(), residents))) {
    const std::optional<Grant> grant = cache.Prefetch(key);
    if (grant) cache.Filled(grant->slot, grant->generation);
  }
}

}  // namespace

absl::StatusOr<SimulationResult> Simulate(const SimulatedModel& model, const Simulation& simulation,
                                          std::span<const RoutingTrace> traces) {
  const int residents = Divisible(model, simulation.residents, simulation.division);
  if (residents < 1) {
    return absl::ResourceExhaustedError("a budget must keep at least one expert resident");
  }
  auto cache = ExpertCache::Create({.experts_per_layer = model.experts_per_layer,
                                    .top_k = model.top_k,
                                    .num_slots = SlotsFor(model, residents),
                                    .policy = simulation.policy,
                                    .division = simulation.division});
  if (!cache.ok()) return cache.status();
  Preload(simulation.preload, residents, **cache);
  (*cache)->ResetCounters();
  SimulationResult result;
  result.demands = Replay(traces, **cache);
  for (const LayerStats& layer : (*cache)->Stats().layers) {
    result.admissions += layer.admissions_total;
    result.evictions += layer.evictions_total;
  }
  return result;
}

HitCount Optimum(const SimulatedModel& model, int residents, SlotDivision division,
                 std::span<const RoutingTrace> traces) {
  const ExpertIndex index(model.experts_per_layer);
  if (division == SlotDivision::kByWorth) return OptimumOnePool(index, residents, traces);
  const int per_layer = Divisible(model, residents, division) / LayersWithExperts(model);
  return OptimumPerLayer(index, per_layer, traces);
}

std::vector<ExpertKey> MostUsed(const SimulatedModel& model, SlotDivision division,
                                std::span<const RoutingTrace> traces) {
  const ExpertIndex index(model.experts_per_layer);
  std::vector<int64_t> uses(index.total_experts(), 0);
  std::vector<ExpertKey> keys;
  for (const RoutingTrace& trace : traces) {
    for (const LayerRouting& routing : trace.layers) {
      for (const ExpertLoad& load : routing.experts) {
        const ExpertKey key{routing.layer, load.expert};
        if (uses[index.Of(key)]++ == 0) keys.push_back(key);
      }
    }
  }
  const auto more_used = [&](ExpertKey a, ExpertKey b) {
    return std::tuple(-uses[index.Of(a)], a) < std::tuple(-uses[index.Of(b)], b);
  };
  std::sort(keys.begin(), keys.end(), more_used);
  if (division == SlotDivision::kByWorth) return keys;
  std::vector<int> rank(index.total_experts(), 0);  // within the layer
  std::vector<int> seen(index.num_layers(), 0);
  for (ExpertKey key : keys) rank[index.Of(key)] = seen[key.layer]++;
  std::stable_sort(keys.begin(), keys.end(),
                   [&](ExpertKey a, ExpertKey b) { return rank[index.Of(a)] < rank[index.Of(b)]; });
  return keys;
}

}  // namespace moed::cache
