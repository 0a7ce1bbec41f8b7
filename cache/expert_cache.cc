#include "cache/expert_cache.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace moed::cache {
namespace {

absl::Status CheckOptions(const ExpertCacheOptions& options) {
  int most_experts = 0;
  for (int experts : options.experts_per_layer) {
    if (experts < 0) {
      return absl::InvalidArgumentError(absl::StrCat("a layer has ", experts, " experts"));
    }
    most_experts = std::max(most_experts, experts);
  }
  if (most_experts == 0) return absl::InvalidArgumentError("the model has no experts to cache");
  if (options.top_k < 1 || options.top_k > most_experts) {
    return absl::InvalidArgumentError(absl::StrCat("top_k is ", options.top_k, "; it must be 1 to ",
                                                   most_experts, ", the experts of a layer"));
  }
  if (options.num_slots < 0 || options.max_slots < 0 ||
      (options.max_slots > 0 && options.max_slots < options.num_slots)) {
    return absl::InvalidArgumentError(absl::StrCat("num_slots is ", options.num_slots,
                                                   " and max_slots ", options.max_slots,
                                                   "; need 0 <= num_slots <= max_slots"));
  }
  return absl::OkStatus();
}

int32_t Slots(const ExpertCacheOptions& options, int slots) {
  return std::min(slots, ExpertIndex(options.experts_per_layer).total_experts());
}

}  // namespace

absl::StatusOr<std::unique_ptr<ExpertCache>> ExpertCache::Create(
    const ExpertCacheOptions& options) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return status;
  absl::StatusOr<PolicyKind> policy = ParsePolicy(options.policy);
  if (!policy.ok()) return policy.status();
  auto cache = std::unique_ptr<ExpertCache>(new ExpertCache(options, *policy));
  if (absl::Status status = cache->CheckBudget(options.num_slots, 0); !status.ok()) return status;
  return cache;
}

ExpertCache::ExpertCache(const ExpertCacheOptions& options, PolicyKind policy)
    : state_(ExpertIndex(options.experts_per_layer), options.top_k, policy, options.driver,
             options.division, Slots(options, options.num_slots),
             Slots(options, std::max(options.num_slots, options.max_slots))),
      planner_(&state_) {
  if (options.driver == CacheDriver::kDevice) {
    device_ = std::make_unique<DeviceResidency>(&state_, &planner_);
  }
}

absl::Status ExpertCache::CheckBudget(int num_slots, int kept) const {
  const int total = state_.index.total_experts();
  const int needed = state_.driver == CacheDriver::kHost ? state_.top_k : 0;
  const int smallest = std::min(kept + needed, total);
  if (num_slots >= smallest) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("the expert budget holds ", num_slots, " slots; the smallest legal budget is ",
                   smallest, " slots (", needed, " to compute in, ", kept, " pinned)"));
}

void ExpertCache::BeginStep() {
  state_.BeginStep();
  EvictSurplus();
}

void ExpertCache::Observe(int layer, std::span<const ExpertLoad> experts) {
  state_.Observe(layer, experts);
}

inline void ExpertCache::GrantHeld(ExpertKey key, int32_t slot, LayerDemand* demand) {
  const Slot& s = state_.slots.slot(slot);
  const bool resident = s.state == SlotState::kResident;
  LayerStats& counters = state_.counters[key.layer];
  ++(resident ? counters.hits_total : counters.misses_total);
  demand->grants.push_back({.key = key,
                            .slot = slot,
                            .generation = s.generation,
                            .resident = resident,
                            .admitted = !s.scratch,
                            .pin = state_.slots.Pin(slot)});
}

inline Grant ExpertCache::GrantAdmitted(ExpertKey key) {
  ExpertPin pin = state_.slots.Take(key, /*admitted=*/true);
  const int32_t slot = pin.slot();
  return {.key = key,
          .slot = slot,
          .generation = state_.slots.slot(slot).generation,
          .to_fill = true,
          .admitted = true,
          .pin = std::move(pin)};
}

void ExpertCache::Demand(int layer, std::span<const int> experts, LayerDemand* demand) {
  demand->layer = layer;
  demand->grants.clear();
  EvictSurplus();
  // Without a branch on what no predictor can know.
  const std::span<const int32_t> slots = state_.slots.SlotsOfLayer(layer);
  held_.resize(experts.size());
  demand->deferred.resize(experts.size());
  int* const held = held_.data();
  int* const missed = demand->deferred.data();
  size_t num_held = 0;
  for (size_t i = 0; i < experts.size(); ++i) {
    held[num_held] = experts[i];
    missed[i - num_held] = experts[i];
    num_held += slots[experts[i]] >= 0 ? 1 : 0;
  }
  held_.resize(num_held);
  demand->deferred.resize(experts.size() - num_held);
  for (int expert : held_) GrantHeld({layer, expert}, slots[expert], demand);
  if (demand->deferred.empty()) return;
  AdmitMisses(demand);
  GrantScratch(demand);
}

void ExpertCache::DemandDeferred(LayerDemand* demand) {
  demand->grants.clear();
  EvictSurplus();
  GrantScratch(demand);
}

// Grants what the policy admits of demand->deferred.
void ExpertCache::AdmitMisses(LayerDemand* demand) {
  const Admission& admission = Decide(demand->layer, demand->deferred);
  Evict(admission.victims);
  for (int32_t index : admission.admitted) {
    demand->grants.push_back(GrantAdmitted({demand->layer, demand->deferred[index]}));
    demand->deferred[index] = -1;
  }
  if (admission.admitted.empty()) return;
  std::erase(demand->deferred, -1);
  LayerStats& counters = state_.counters[demand->layer];
  counters.misses_total += static_cast<int64_t>(admission.admitted.size());
  counters.admissions_total += static_cast<int64_t>(admission.admitted.size());
}

// Grants free slots to what the policy refused, the last first.
void ExpertCache::GrantScratch(LayerDemand* demand) {
  const int layer = demand->layer;
  const std::span<const int32_t> slots = state_.slots.SlotsOfLayer(layer);
  const auto grant = [&](int expert, ExpertPin pin, uint32_t generation) {
    const int32_t slot = pin.slot();
    demand->grants.push_back({.key = {layer, expert},
                              .slot = slot,
                              .generation = generation,
                              .to_fill = true,
                              .pin = std::move(pin)});
  };
  int64_t granted = 0;
  std::span<const int> left = demand->deferred;
  while (!left.empty()) {
    const size_t refused = state_.slots.TakeScratch(layer, left, grant);
    granted += static_cast<int64_t>(left.size() - refused);
    left = left.first(refused);
    // Either somebody else asked for the next one since, or no slot is free.
    if (left.empty() || slots[left.back()] < 0) break;
    GrantHeld({layer, left.back()}, slots[left.back()], demand);
    left = left.first(left.size() - 1);
  }
  demand->deferred.resize(left.size());
  state_.counters[layer].misses_total += granted;
  state_.counters[layer].refused_admissions_total += granted;
}

std::optional<Grant> ExpertCache::Prefetch(ExpertKey key) {
  if (state_.slots.SlotOf(key) >= 0) return std::nullopt;
  EvictSurplus();
  const Admission& admission = Decide(key.layer, {&key.expert, 1});
  if (admission.admitted.empty()) return std::nullopt;
  Evict(admission.victims);
  ++state_.counters[key.layer].admissions_total;
  return GrantAdmitted(key);
}

const Admission& ExpertCache::Decide(int layer, std::span<const int> misses) {
  // While pins hold what a smaller budget cut, a victim's slot is parked and not to be had.
  static const Admission kNothing;
  if (state_.slots.in_service() > state_.slots.budget()) return kNothing;
  const int32_t spare = state_.resident_limit() - state_.slots.total_resident();
  int32_t free_slots = std::clamp(spare, 0, state_.slots.free_slots());
  if (state_.division == SlotDivision::kEqualPerLayer) {
    // What one layer leaves unused is not for another.
    const int32_t share_left = state_.floors[layer] - state_.slots.layer_resident()[layer];
    free_slots = std::clamp(share_left, 0, free_slots);
  }
  if (state_.driver == CacheDriver::kHost) {
    return planner_.Decide(layer, misses, free_slots, Exchange::kFree);
  }
  return planner_.DecideWithoutVictims(layer, misses, free_slots);
}

void ExpertCache::Evict(std::span<const int32_t> slots) {
  for (int32_t slot : slots) {
    ++state_.counters[state_.slots.slot(slot).key.layer].evictions_total;
    state_.slots.Evict(slot);
  }
}

// What a smaller budget cut while it was pinned.
void ExpertCache::EvictSurplus() {
  if (device_ == nullptr && state_.slots.total_resident() > state_.resident_limit()) {
    Evict(planner_.Surplus(state_.resident_limit()));
  }
}

bool ExpertCache::FillFailed(int32_t slot, uint32_t generation) {
  return state_.slots.FillFailed(slot, generation);
}

absl::Status ExpertCache::Verify(ExpertKey key, int32_t slot, uint32_t generation) const {
  if (slot < 0 || slot >= state_.slots.max_slots()) {
    return absl::InternalError(absl::StrCat("slot ", slot, " does not exist"));
  }
  const Slot& s = state_.slots.slot(slot);
  if (s.key == key && s.generation == generation && s.state == SlotState::kResident && s.pins > 0) {
    return absl::OkStatus();
  }
  return absl::InternalError(absl::StrCat(
      "slot ", slot, " was read for layer ", key.layer, " expert ", key.expert, " generation ",
      generation, " but is of layer ", s.key.layer, " expert ", s.key.expert, " generation ",
      s.generation, s.state == SlotState::kResident ? ", resident" : ", not resident", ", ", s.pins,
      " pins"));
}

void ExpertCache::CountBytes(int layer, BytePath path, int64_t bytes) {
  state_.counters[layer].bytes_total[static_cast<int>(path)] += bytes;
}

void ExpertCache::CountMisses(int layer, int64_t misses) {
  state_.counters[layer].misses_total += misses;
}

void ExpertCache::CountStall(int layer, double seconds) {
  state_.counters[layer].stall_seconds_total += seconds;
}

}  // namespace moed::cache
