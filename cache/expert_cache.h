// Which experts are resident, in which of a fixed number of slots, and who may use them now.
//
// The cache decides and keeps count; it never touches a byte of a weight. One state machine
// (SlotTable) has two drivers (docs/DESIGN.md):
//  - host-driven (CPU, CUDA prefill), here: Demand pins what is resident and hands out slots to
//    fill; the caller fills them, reports Filled or FillFailed, and lets the pins go.
//  - device-driven (CUDA decode), device_residency.h: the host publishes numbered edits of the
//    device's table and replays the device's traces.
// Owned by the engine, used by the engine thread only; I/O threads report through that thread.
//
// A step, host-driven:
//   cache.BeginStep();
//   for each MoE layer:
//     cache.Observe(layer, loads);               // what the router chose, before Demand
//     cache.Demand(layer, distinct experts, &demand);
//     for (;; cache.DemandDeferred(&demand)) {   // the last wave's pins are given back
//       start reading every grant to_fill; compute the resident ones meanwhile;
//       as reads end: cache.Filled(grant.slot, grant.generation), compute;
//       if (demand.deferred.empty()) break;
//     }
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cache/admission.h"
#include "cache/cache_state.h"
#include "cache/cache_stats.h"
#include "cache/device_residency.h"
#include "cache/expert_key.h"
#include "cache/expert_pin.h"
#include "cache/hot_set_snapshot.h"
#include "cache/routing_stats.h"

namespace moed::cache {

struct ExpertCacheOptions {
  // Experts of each layer; 0 for a layer without a router.
  std::vector<int> experts_per_layer;
  int top_k = 0;
  // Slots in all: the budget over the bytes of one expert. More than there are experts is cut.
  int num_slots = 0;
  // Slot ids that may ever exist, for SetBudget to grow into; 0: num_slots.
  int max_slots = 0;
  // recency-frequency | lru | lfu | static
  std::string policy = "recency-frequency";
  CacheDriver driver = CacheDriver::kHost;
  SlotDivision division = SlotDivision::kByWorth;
};

// A slot that holds, or is to hold, one expert for as long as the pin lives. Move-only.
struct Grant {
  ExpertKey key;
  int32_t slot = -1;
  uint32_t generation = 0;  // of the slot; a fill for an older one is stale
  bool resident = false;    // the slot holds the expert; otherwise wait for Filled
  // The caller of this Demand must fill the slot. Not resident and not to_fill: an earlier holder
  // (a prefetch) is filling it already.
  bool to_fill = false;
  // The expert stays after the last pin. false: scratch, the content goes with the last pin.
  bool admitted = false;
  ExpertPin pin;
};

// What the experts of one layer were granted, wave by wave. Kept from layer to layer for its
// memory.
struct LayerDemand {
  int layer = 0;
  std::vector<Grant> grants;  // those that hold or are getting their expert first, then to_fill
  std::vector<int> deferred;  // no slot is free: DemandDeferred, once pins were let go
};

class ExpertCache {
 public:
  // INVALID_ARGUMENT: an unknown policy, negative or inconsistent sizes, no layer with experts;
  // RESOURCE_EXHAUSTED: host-driven with fewer than top_k slots, naming the smallest legal budget
  // (device-driven: 0 is legal).
  static absl::StatusOr<std::unique_ptr<ExpertCache>> Create(const ExpertCacheOptions& options);
  ExpertCache(const ExpertCache&) = delete;
  ExpertCache& operator=(const ExpertCache&) = delete;

  // A step begins: the clock of the statistics moves by one.
  void BeginStep();
  // What one layer's router chose in this step; once per layer and step, before its first Demand.
  void Observe(int layer, std::span<const ExpertLoad> experts);

  // Pins what is resident of `experts` (distinct, of `layer`) and gives each other one a slot to
  // fill: admitted, if one is free or the policy finds something colder to evict, else scratch.
  // What finds no slot is deferred. Grants that `demand` still holds are let go first. Host-driven
  // with no other pins held, at least one expert is granted: any legal budget makes progress. Each
  // expert is counted as hit or miss when it is granted.
  void Demand(int layer, std::span<const int> experts, LayerDemand* demand);
  // The next wave: lets demand->grants go, and grants what was deferred while slots are free. The
  // policy is not asked again.
  void DemandDeferred(LayerDemand* demand);

  // A slot to fill for an expert that nobody demanded yet (lookahead, warm start): only if it is
  // not in a slot already and the policy admits it. Not counted as hit or miss.
  std::optional<Grant> Prefetch(ExpertKey key);

  // Device-driven only, else null: then Demand and Prefetch take free slots and evict nothing, and
  // what they fill reaches the device with the next update.
  DeviceResidency* device() { return device_.get(); }

  // The fill of a granted slot ended. Returns false, changing nothing, if the grant is stale: the
  // slot's pins were let go before. After FillFailed the expert is not resident, and its slot is
  // free for others once the last pin is gone.
  bool Filled(int32_t slot, uint32_t generation) {
    if (!state_.slots.Filled(slot, generation)) return false;
    if (device_ != nullptr) device_->HostFilled(slot);
    return true;
  }
  bool FillFailed(int32_t slot, uint32_t generation);

  // INTERNAL, naming both, unless the slot holds `key` at `generation` and is pinned. A debug build
  // checks it wherever a slot is read.
  absl::Status Verify(ExpertKey key, int32_t slot, uint32_t generation) const;

  // For the caller to report what its fills and waits cost.
  void CountBytes(int layer, BytePath path, int64_t bytes);
  void CountStall(int layer, double seconds);
  // Experts that found no slot in Demand and were used without one (device-driven only).
  void CountMisses(int layer, int64_t misses);

  // Keeps an expert resident from its next fill on (until UnpinExpert), and admits it before all
  // others. INVALID_ARGUMENT: no such expert; RESOURCE_EXHAUSTED: kept experts would leave fewer
  // than top_k slots for the rest.
  absl::Status PinExpert(ExpertKey key);
  absl::Status UnpinExpert(ExpertKey key);
  bool pinned(ExpertKey key) const {
    return state_.index.Contains(key) && state_.keep[state_.index.Of(key)] != 0;
  }
  // INVALID_ARGUMENT: no such expert.
  absl::Status CheckExpert(ExpertKey key) const;

  // Changes the number of slots while serving. Shrinking evicts the coldest at once; slots pinned
  // now leave when their pins do. INVALID_ARGUMENT: above max_slots; RESOURCE_EXHAUSTED: below the
  // smallest legal budget.
  absl::Status SetBudget(int num_slots);

  // What a restart needs to be warm: SaveHotSet before, RestoreHeat after, then Prefetch of each
  // resident in order. RestoreHeat takes a hot set parsed for this model's shape.
  HotSet SaveHotSet() const;
  void RestoreHeat(const HotSet& hot_set);

  // The hit rate, 0 to 1, that `num_slots` slots would give the recency-frequency policy on the
  // routing of the last few thousand steps; 0 before there were any.
  double HitRateAt(int num_slots) const;
  // The same for every budget; never null.
  std::shared_ptr<const BudgetEstimate> EstimateBudgets() { return state_.curve.Estimate(); }

  // What the router's softmax gave each of a layer's experts: sums over `rows` tokens. Optional.
  void ObserveProbabilities(int layer, std::span<const float> sums, int rows) {
    state_.balance.ObserveProbabilities(layer, sums, rows);
  }
  // [layers]
  std::vector<LayerBalance> Balance() const { return state_.balance.Balance(state_.routing); }

  // From now on every step's routing is recorded. The bytes since the last call are those of
  // routing_log.h; empty if nothing was recorded.
  void StartRecording(const std::string& model, int64_t expert_bytes);
  std::string TakeRecording();

  bool resident(ExpertKey key) const;
  int num_slots() const { return state_.slots.budget(); }
  int max_slots() const { return state_.slots.max_slots(); }
  const RoutingStats& routing() const { return state_.routing; }
  CacheStats Stats() const;
  ExpertStats PerExpertStats() const;
  void ResetCounters();

 private:
  ExpertCache(const ExpertCacheOptions& options, PolicyKind policy);

  absl::Status CheckBudget(int num_slots, int kept) const;
  void GrantHeld(ExpertKey key, int32_t slot, LayerDemand* demand);
  Grant GrantAdmitted(ExpertKey key);
  const Admission& Decide(int layer, std::span<const int> misses);
  void AdmitMisses(LayerDemand* demand);
  void GrantScratch(LayerDemand* demand);
  void Evict(std::span<const int32_t> slots);
  void EvictSurplus();

  CacheState state_;
  AdmissionPlanner planner_;
  std::unique_ptr<DeviceResidency> device_;  // null if host-driven
  std::vector<int> held_;                    // of the Demand under way; kept for its memory
};

}  // namespace moed::cache
