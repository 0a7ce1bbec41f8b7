// What the two drivers of the cache share: the slots, the statistics, the division of the budget,
// the counters. Owned by ExpertCache; not part of its interface.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cache/cache_stats.h"
#include "cache/expert_index.h"
#include "cache/load_balance.h"
#include "cache/miss_ratio_curve.h"
#include "cache/policy.h"
#include "cache/routing_log.h"
#include "cache/routing_stats.h"
#include "cache/slot_floors.h"
#include "cache/slot_table.h"

namespace moed::cache {

// Who decides when a slot is filled.
enum class CacheDriver : uint8_t { kHost, kDevice };

struct CacheState {
  CacheState(const ExpertIndex& experts, int top_k_experts, PolicyKind policy_kind,
             CacheDriver cache_driver, SlotDivision slot_division, int32_t num_slots,
             int32_t max_slots)
      : index(experts),
        top_k(top_k_experts),
        policy(policy_kind),
        driver(cache_driver),
        division(slot_division),
        routing(experts, top_k_experts, HalfLifeSteps(policy_kind)),
        curve(experts, top_k_experts, cache_driver == CacheDriver::kHost),
        balance(experts),
        slots(experts, num_slots, max_slots),
        keep(experts.total_experts(), 0),
        counters(experts.num_layers()) {
    DivideBudget(num_slots);
  }

  // Kept experts come off the top, so that floors and they together always fit. A device needs no
  // scratch: it computes cold experts from host memory.
  void DivideBudget(int32_t num_slots) {
    scratch_slots = driver == CacheDriver::kHost ? ScratchSlots(index, top_k, num_slots) : 0;
    floors = LayerFloors(index, top_k, num_slots - scratch_slots - num_kept, division);
  }
  // Experts that may be resident, once everything that a smaller budget cut is gone.
  int32_t resident_limit() const { return slots.budget() - scratch_slots; }

  void BeginStep() {
    balance.EndStep(routing);
    curve.BeginStep(routing);
    routing.BeginStep();
    if (log != nullptr) log->BeginStep();
  }
  void Observe(int layer, std::span<const ExpertLoad> experts) {
    curve.ObserveLayer(layer, experts);
    routing.ObserveLayer(layer, experts);
    if (log != nullptr) log->ObserveLayer(layer, experts);
  }

  ExpertView View(ExpertKey key) const {
    return {.key = key,
            .last_use_step = routing.last_use_step(key),
            .heat = routing.raw_heat(key),
            .recent_heat = routing.raw_recent_heat(key),
            .keep = keep[index.Of(key)] != 0};
  }
  // [experts of the layer]: what RoutingStats and then the policy say of each.
  struct Ranking {
    std::vector<double> recent_heats;
    std::vector<double> worths;
  };
  void Rank(int layer, Ranking* ranking) const {
    const auto experts = static_cast<size_t>(index.num_experts(layer));
    ranking->recent_heats.resize(experts);
    ranking->worths.resize(experts);
    routing.RawRecentHeats(layer, /*prediction_share=*/1, ranking->recent_heats);
    Worths(policy,
           {.last_use_step = routing.last_use_steps(layer),
            .heat = routing.raw_heats(layer),
            .recent_heat = ranking->recent_heats,
            .keep = {keep.data() + index.FirstOf(layer), num_kept > 0 ? experts : 0}},
           ranking->worths);
  }
  bool Evictable(int32_t slot) const {
    return slots.Evictable(slot) && keep[index.Of(slots.slot(slot).key)] == 0;
  }

  ExpertIndex index;
  int top_k;
  PolicyKind policy;
  CacheDriver driver;
  SlotDivision division;
  RoutingStats routing;
  MissRatioCurve curve;
  LoadBalance balance;
  SlotTable slots;
  std::vector<uint8_t> keep;  // [all experts]: 1 if an operator pinned it
  int32_t num_kept = 0;
  std::vector<LayerStats> counters;  // [layers]; tokens, resident and floor are set when read
  int32_t scratch_slots = 0;
  std::vector<int32_t> floors;            // [layers]
  std::unique_ptr<RoutingLogWriter> log;  // null: nothing is recorded
};

}  // namespace moed::cache
