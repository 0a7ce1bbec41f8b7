// What a policy and a budget would have done on recorded routing: replays it through a real cache.
// For `moed cache-sim` and tests; any thread.
//
// Budgets here count residents. A host-driven cache takes its scratch slots in addition, so that
// every policy and the optimum keep equally many experts. Equal slots a layer are the nearest whole
// number of them: 15 % of 32 experts are 5.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cache/expert_cache.h"
#include "cache/expert_key.h"
#include "cache/optimum.h"
#include "cache/routing_trace.h"

namespace moed::cache {

struct SimulatedModel {
  std::vector<int> experts_per_layer;
  int top_k = 0;
};

struct Simulation {
  std::string policy = "recency-frequency";
  int residents = 0;
  SlotDivision division = SlotDivision::kByWorth;
  // Loaded before the first step, the first ones while there is room: a static list is these with
  // the policy "static".
  std::span<const ExpertKey> preload = {};
};

struct SimulationResult {
  HitCount demands;
  int64_t admissions = 0;
  int64_t evictions = 0;
};

// INVALID_ARGUMENT: an unknown policy or a model without experts; RESOURCE_EXHAUSTED: no resident
// at all.
absl::StatusOr<SimulationResult> Simulate(const SimulatedModel& model, const Simulation& simulation,
                                          std::span<const RoutingTrace> traces);

// The optimum at the same budget and division.
HitCount Optimum(const SimulatedModel& model, int residents, SlotDivision division,
                 std::span<const RoutingTrace> traces);

// All experts that the traces use, those used in most steps first; by layers in turn if every layer
// has equally many slots.
std::vector<ExpertKey> MostUsed(const SimulatedModel& model, SlotDivision division,
                                std::span<const RoutingTrace> traces);

}  // namespace moed::cache
