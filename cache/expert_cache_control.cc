// The side of ExpertCache that operators see: pins, budget, hot set, numbers.
#include <algorithm>
#include <numeric>
#include <span>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cache/expert_cache.h"

namespace moed::cache {

absl::Status ExpertCache::CheckExpert(ExpertKey key) const {
  if (state_.index.Contains(key)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the model has no expert ", key.expert, " in layer ", key.layer));
}

absl::Status ExpertCache::PinExpert(ExpertKey key) {
  if (absl::Status status = CheckExpert(key); !status.ok()) return status;
  uint8_t& keep = state_.keep[state_.index.Of(key)];
  if (keep != 0) return absl::OkStatus();
  if (absl::Status status = CheckBudget(num_slots(), state_.num_kept + 1); !status.ok())
    return status;
  keep = 1;
  ++state_.num_kept;
  state_.DivideBudget(num_slots());
  return absl::OkStatus();
}

absl::Status ExpertCache::UnpinExpert(ExpertKey key) {
  if (absl::Status status = CheckExpert(key); !status.ok()) return status;
  state_.num_kept -= std::exchange(state_.keep[state_.index.Of(key)], 0);
  state_.DivideBudget(num_slots());
  return absl::OkStatus();
}

absl::Status ExpertCache::SetBudget(int num_slots) {
  num_slots = std::min(num_slots, state_.index.total_experts());
  if (num_slots > state_.slots.max_slots()) {
    return absl::InvalidArgumentError(absl::StrCat("the expert budget of ", num_slots,
                                                   " slots exceeds the ", state_.slots.max_slots(),
                                                   " that were reserved at start"));
  }
  if (absl::Status status = CheckBudget(num_slots, state_.num_kept); !status.ok()) return status;
  state_.DivideBudget(num_slots);
  state_.slots.SetBudget(num_slots);
  EvictSurplus();
  return absl::OkStatus();
}

HotSet ExpertCache::SaveHotSet() const {
  HotSet hot_set;
  for (int layer = 0; layer < state_.index.num_layers(); ++layer) {
    for (int expert = 0; expert < state_.index.num_experts(layer); ++expert) {
      const ExpertKey key{layer, expert};
      hot_set.heat.push_back(static_cast<float>(state_.routing.heat(key)));
      if (resident(key)) hot_set.residents.push_back(key);
    }
  }
  return hot_set;
}

void ExpertCache::RestoreHeat(const HotSet& hot_set) {
  for (int layer = 0; layer < state_.index.num_layers(); ++layer) {
    for (int expert = 0; expert < state_.index.num_experts(layer); ++expert) {
      const ExpertKey key{layer, expert};
      state_.routing.RestoreHeat(key, hot_set.heat[state_.index.Of(key)]);
    }
  }
}

double ExpertCache::HitRateAt(int num_slots) const { return state_.curve.HitRate(num_slots); }

void ExpertCache::StartRecording(const std::string& model, int64_t expert_bytes) {
  RoutingLogHeader header{
      .experts_per_layer = {}, .top_k = state_.top_k, .expert_bytes = expert_bytes, .model = model};
  for (int layer = 0; layer < state_.index.num_layers(); ++layer) {
    header.experts_per_layer.push_back(state_.index.num_experts(layer));
  }
  state_.log = std::make_unique<RoutingLogWriter>(header);
}

std::string ExpertCache::TakeRecording() {
  return state_.log == nullptr ? std::string() : state_.log->Take();
}

bool ExpertCache::resident(ExpertKey key) const {
  const int32_t slot = state_.slots.SlotOf(key);
  return slot >= 0 && state_.slots.slot(slot).state == SlotState::kResident;
}

CacheStats ExpertCache::Stats() const {
  CacheStats stats{.policy = std::string(PolicyName(state_.policy)),
                   .num_slots = num_slots(),
                   .steps_total = state_.routing.step(),
                   .layers = state_.counters};
  for (int layer = 0; layer < state_.index.num_layers(); ++layer) {
    const std::span<const int64_t> tokens = state_.routing.tokens_totals(layer);
    stats.layers[layer].tokens_total = std::accumulate(tokens.begin(), tokens.end(), int64_t{0});
    stats.layers[layer].resident = state_.slots.layer_resident()[layer];
    stats.layers[layer].floor = state_.floors[layer];
  }
  return stats;
}

ExpertStats ExpertCache::PerExpertStats() const {
  ExpertStats stats;
  for (int layer = 0; layer < state_.index.num_layers(); ++layer) {
    const std::span<const int64_t> tokens = state_.routing.tokens_totals(layer);
    stats.tokens_total.emplace_back(tokens.begin(), tokens.end());
    auto& is_resident = stats.resident.emplace_back();
    is_resident.reserve(tokens.size());
    for (int32_t slot : state_.slots.SlotsOfLayer(layer)) {
      const bool resident = slot >= 0 && state_.slots.slot(slot).state == SlotState::kResident;
      is_resident.push_back(resident ? 1 : 0);
    }
  }
  return stats;
}

void ExpertCache::ResetCounters() {
  state_.counters.assign(state_.index.num_layers(), LayerStats{});
  state_.balance.BeforeReset(state_.routing);
  state_.routing.ResetTotals();
}

}  // namespace moed::cache
