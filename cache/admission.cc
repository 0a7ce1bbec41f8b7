#include "cache/admission.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>

namespace moed::cache {
namespace {

// How many donors a search keeps and how many steps it serves, and the most that one layer is shown
// at a time. The order of donors is then a few steps old, in which no heat changes by a fifth.
constexpr size_t kMaxDonors = 256;
constexpr int64_t kDonorSteps = 8;
constexpr size_t kMaxDonorsShown = 16;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// In four lanes, for a chain of comparisons is as slow as it is long.
double Largest(std::span<const double> values) {
  std::array<double, 4> largest = {-kInfinity, -kInfinity, -kInfinity, -kInfinity};
  size_t i = 0;
  for (; i + 4 <= values.size(); i += 4) {
    for (size_t lane = 0; lane < 4; ++lane) {
      largest[lane] = std::max(largest[lane], values[i + lane]);
    }
  }
  for (; i < values.size(); ++i) largest[0] = std::max(largest[0], values[i]);
  return std::max(std::max(largest[0], largest[1]), std::max(largest[2], largest[3]));
}

}  // namespace

const Admission& AdmissionPlanner::Decide(int layer, std::span<const int> misses, int free_slots) {
  StartView(layer, misses, free_slots);
  if (static_cast<size_t>(free_slots) < misses.size()) {
    ShowResidents();
    ShowDonors();
  }
  ShowCandidates();
  return AskPolicy();
}

const Admission& AdmissionPlanner::DecideWithoutVictims(int layer, std::span<const int> misses,
                                                        int free_slots) {
  StartView(layer, misses, free_slots);
  ShowCandidates();
  return AskPolicy();
}

void AdmissionPlanner::StartView(int layer, std::span<const int> misses, int free_slots) {
  layer_ = layer;
  misses_ = misses;
  free_slots_ = free_slots;
  owed_ = std::max(0, state_.floors[layer] - state_.slots.layer_resident()[layer]);
  only_worth_more_ = AdmitsOnlyWorthMore(state_.policy);
  state_.Rank(layer, &ranking_);
  miss_worths_.resize(misses.size());
  for (size_t i = 0; i < misses.size(); ++i) miss_worths_[i] = ranking_.worths[misses[i]];
  candidates_.clear();
  evictable_.clear();
  evictable_slots_.clear();
  least_worth_ = kInfinity;
}

// Those that the best of the misses may displace; never what is kept, whose worth is infinite.
void AdmissionPlanner::ShowResidents() {
  below_ = only_worth_more_ ? Largest(miss_worths_) : kInfinity;
  // Without a branch on what no predictor can know.
  residents_.resize(ranking_.worths.size());
  size_t num_residents = 0;
  state_.slots.VisitAdmitted(layer_, [&](int expert, int32_t slot) {
    residents_[num_residents] = expert;
    num_residents += static_cast<size_t>(ranking_.worths[expert] < below_) &
                     static_cast<size_t>(state_.slots.Evictable(slot));
  });
  residents_.resize(num_residents);
  for (int expert : residents_) {
    SetView(expert, AddResident(state_.slots.SlotOf({layer_, expert}), ranking_.worths[expert]));
  }
}

// As many as there may be admissions.
void AdmissionPlanner::ShowDonors() {
  const size_t own = evictable_.size();
  const int64_t age = state_.routing.step() - donors_step_;
  if (age >= kDonorSteps) FindDonors();
  const auto show = [&] {
    size_t wanted = kMaxDonorsShown;
    size_t shown = 0;
    for (size_t i = 0; i < donors_.size() && shown < wanted; ++i) {
      const ExpertKey key = state_.slots.slot(donors_[i]).key;
      if (!Donates(donors_[i]) || key.layer == layer_) continue;
      const ExpertView expert = state_.View(key);
      const double worth = Worth(state_.policy, expert);
      if (worth < below_ || owed_ > 0) *AddResident(donors_[i], worth) = expert;
      if (++shown == 1) wanted = std::min(wanted, MostAdmissions());
    }
  };
  show();
  if (owed_ > 0 && evictable_.size() == own && age > 0) {
    FindDonors();
    show();
  }
}

// Returns its view, to be set.
ExpertView* AdmissionPlanner::AddResident(int32_t slot, double worth) {
  evictable_slots_.push_back(slot);
  least_worth_ = std::min(least_worth_, worth);
  return &evictable_.emplace_back();
}

size_t AdmissionPlanner::MostAdmissions() const {
  if (!only_worth_more_) return misses_.size();
  size_t worth_more = 0;
  for (double worth : miss_worths_) worth_more += worth > least_worth_ ? 1 : 0;
  return std::min(misses_.size(), worth_more + free_slots_ + owed_);
}

// Those for which there may be a place: the best for free slots and floors, and what is worth more
// than some resident.
void AdmissionPlanner::ShowCandidates() {
  double above = only_worth_more_ ? least_worth_ : -kInfinity;
  const size_t places = static_cast<size_t>(free_slots_) + static_cast<size_t>(owed_);
  if (places >= misses_.size()) {
    above = -kInfinity;
  } else if (places > 0) {
    best_.resize(places);
    std::partial_sort_copy(miss_worths_.begin(), miss_worths_.end(), best_.begin(), best_.end(),
                           std::greater<>());
    above = std::min(above, std::nextafter(best_.back(), -kInfinity));
  }
  // Without a branch on what no predictor can know.
  candidate_misses_.resize(misses_.size());
  size_t num_candidates = 0;
  for (size_t i = 0; i < misses_.size(); ++i) {
    candidate_misses_[num_candidates] = static_cast<int32_t>(i);
    num_candidates += miss_worths_[i] > above ? 1 : 0;
  }
  candidate_misses_.resize(num_candidates);
  candidates_.resize(num_candidates);
  for (size_t i = 0; i < num_candidates; ++i) {
    SetView(misses_[candidate_misses_[i]], &candidates_[i]);
  }
}

const Admission& AdmissionPlanner::AskPolicy() {
  admission_.admitted.clear();
  admission_.victims.clear();
  if (candidates_.empty()) return admission_;
  const Plan plan = MakePlan(state_.policy, {.layer = layer_,
                                             .candidates = candidates_,
                                             .evictable = evictable_,
                                             .free_slots = free_slots_,
                                             .layer_resident = state_.slots.layer_resident(),
                                             .layer_floor = state_.floors});
  for (int32_t candidate : plan.admissions) {
    admission_.admitted.push_back(candidate_misses_[candidate]);
  }
  for (int32_t resident : plan.evictions) admission_.victims.push_back(evictable_slots_[resident]);
  return admission_;
}

// In place: built elsewhere and copied, it would be read back before it is written.
void AdmissionPlanner::SetView(int expert, ExpertView* view) const {
  view->key = {layer_, expert};
  view->last_use_step = state_.routing.last_use_steps(layer_)[expert];
  view->heat = state_.routing.raw_heats(layer_)[expert];
  view->recent_heat = ranking_.recent_heats[expert];
  view->keep = state_.keep[state_.index.Of({layer_, expert})] != 0;
}

bool AdmissionPlanner::Donates(int32_t slot) const {
  if (!state_.Evictable(slot)) return false;
  const int layer = state_.slots.slot(slot).key.layer;
  return state_.slots.layer_resident()[layer] > state_.floors[layer];
}

void AdmissionPlanner::FindDonors() {
  donors_step_ = state_.routing.step();
  std::vector<RankedSlot> donors = AllDonors();
  const size_t kept = std::min(donors.size(), kMaxDonors);
  std::nth_element(donors.begin(), donors.begin() + kept, donors.end());
  std::sort(donors.begin(), donors.begin() + kept);
  donors_.clear();
  for (size_t i = 0; i < kept; ++i) donors_.push_back(donors[i].second);
}

// Each resident that its layer may lose.
std::vector<AdmissionPlanner::RankedSlot> AdmissionPlanner::AllDonors() const {
  std::vector<RankedSlot> donors;
  donors.reserve(state_.slots.total_resident());
  CacheState::Ranking ranking;
  for (int layer = 0; layer < state_.index.num_layers(); ++layer) {
    if (state_.slots.layer_resident()[layer] <= state_.floors[layer]) continue;
    state_.Rank(layer, &ranking);
    state_.slots.VisitAdmitted(layer, [&](int expert, int32_t slot) {
      if (state_.Evictable(slot)) donors.emplace_back(ranking.worths[expert], slot);
    });
  }
  return donors;
}

std::vector<int32_t> AdmissionPlanner::Surplus(int32_t limit) const {
  std::vector<int32_t> surplus;
  int32_t excess = state_.slots.total_resident() - limit;
  if (excess <= 0) return surplus;
  std::vector<RankedSlot> donors = AllDonors();
  std::sort(donors.begin(), donors.end());
  std::vector<int32_t> resident(state_.slots.layer_resident().begin(),
                                state_.slots.layer_resident().end());
  for (const auto& [worth, slot] : donors) {
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
