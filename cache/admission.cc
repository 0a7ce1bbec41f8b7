#include "cache/admission.h"

#include <algorithm>
#include <utility>

namespace moed::cache {
namespace {

// How many donors a search keeps and how many steps it serves, and the most that one layer is shown
// at a time. The order of donors is then a few steps old, in which no heat changes by a fifth.
constexpr size_t kMaxDonors = 256;
constexpr int64_t kDonorSteps = 8;
constexpr size_t kMaxDonorsShown = 16;

}  // namespace

Admission AdmissionPlanner::Decide(int layer, std::span<const int> misses, int free_slots) {
  StartView(layer, misses);
  if (static_cast<size_t>(free_slots) < misses.size()) {
    AddOwnResidents(layer);
    AddDonors(layer, misses.size());
  }
  return AskPolicy(layer, free_slots);
}

Admission AdmissionPlanner::DecideWithoutVictims(int layer, std::span<const int> misses,
                                                 int free_slots) {
  StartView(layer, misses);
  return AskPolicy(layer, free_slots);
}

void AdmissionPlanner::StartView(int layer, std::span<const int> misses) {
  candidates_.clear();
  evictable_.clear();
  evictable_slots_.clear();
  for (int expert : misses) candidates_.push_back(state_.View({layer, expert}));
}

Admission AdmissionPlanner::AskPolicy(int layer, int free_slots) const {
  Plan plan = MakePlan(state_.policy, {.layer = layer,
                                       .candidates = candidates_,
                                       .evictable = evictable_,
                                       .free_slots = free_slots,
                                       .layer_resident = state_.slots.layer_resident(),
                                       .layer_floor = state_.floors});
  for (int32_t& eviction : plan.evictions) eviction = evictable_slots_[eviction];
  return {std::move(plan.admissions), std::move(plan.evictions)};
}

void AdmissionPlanner::AddOwnResidents(int layer) {
  for (int32_t slot : state_.slots.SlotsOfLayer(layer)) {
    if (slot < 0 || !state_.Evictable(slot)) continue;
    evictable_.push_back(state_.View(state_.slots.slot(slot).key));
    evictable_slots_.push_back(slot);
  }
}

void AdmissionPlanner::AddDonors(int layer, size_t wanted) {
  const size_t own = evictable_.size();
  const int64_t age = state_.routing.step() - donors_step_;
  if (age >= kDonorSteps) FindDonors();
  ShowDonors(layer, wanted);
  const bool owed = state_.slots.layer_resident()[layer] < state_.floors[layer];
  if (owed && evictable_.size() == own && age > 0) {
    FindDonors();
    ShowDonors(layer, wanted);
  }
}

void AdmissionPlanner::ShowDonors(int layer, size_t wanted) {
  size_t shown = 0;
  for (int32_t slot : donors_) {
    if (shown == std::min(wanted, kMaxDonorsShown)) return;
    if (!Donates(slot) || state_.slots.slot(slot).key.layer == layer) continue;
    evictable_.push_back(state_.View(state_.slots.slot(slot).key));
    evictable_slots_.push_back(slot);
    ++shown;
  }
}

bool AdmissionPlanner::Donates(int32_t slot) const {
  if (!state_.Evictable(slot)) return false;
  const int layer = state_.slots.slot(slot).key.layer;
  return state_.slots.layer_resident()[layer] > state_.floors[layer];
}

void AdmissionPlanner::FindDonors() {
  donors_step_ = state_.routing.step();
  std::vector<int32_t> slots;
  for (int32_t slot = 0; slot < state_.slots.max_slots(); ++slot) {
    if (Donates(slot)) slots.push_back(slot);
  }
  donors_ = ByRisingWorth(std::move(slots), kMaxDonors);
}

std::vector<int32_t> AdmissionPlanner::ByRisingWorth(std::vector<int32_t> slots,
                                                     size_t count) const {
  std::vector<std::pair<double, int32_t>> ranked;
  ranked.reserve(slots.size());
  for (int32_t slot : slots) {
    ranked.emplace_back(Worth(state_.policy, state_.View(state_.slots.slot(slot).key)), slot);
  }
  count = std::min(count, ranked.size());
  std::partial_sort(ranked.begin(), ranked.begin() + count, ranked.end());
  slots.resize(count);
  for (size_t i = 0; i < count; ++i) slots[i] = ranked[i].second;
  return slots;
}

std::vector<int32_t> AdmissionPlanner::Surplus(int32_t limit) const {
  std::vector<int32_t> surplus;
  int32_t excess = state_.slots.total_resident() - limit;
  if (excess <= 0) return surplus;
  std::vector<int32_t> slots;
  for (int32_t slot = 0; slot < state_.slots.max_slots(); ++slot) {
    if (Donates(slot)) slots.push_back(slot);
  }
  const size_t all = slots.size();
  std::vector<int32_t> resident(state_.slots.layer_resident().begin(),
                                state_.slots.layer_resident().end());
  for (int32_t slot : ByRisingWorth(std::move(slots), all)) {
    const int layer = state_.slots.slot(slot).key.layer;
    if (excess == 0) break;
    if (resident[layer] <= state_.floors[layer]) continue;
    --resident[layer];
    --excess;
    surplus.push_back(slot);
  }
  return surplus;
}

}  // namespace moed::cache
