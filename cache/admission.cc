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

// How closely the worth is looked for at which an exchange ends.
constexpr int kScaleSteps = 32;
// So few are shown as they are.
constexpr size_t kFewShown = 16;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// In four lanes, for a chain of comparisons is as slow as it is long.
template <typename Better>
double Best(std::span<const double> values, double none, Better better) {
  std::array<double, 4> best = {none, none, none, none};
  size_t i = 0;
  for (; i + 4 <= values.size(); i += 4) {
    for (size_t lane = 0; lane < 4; ++lane) best[lane] = better(best[lane], values[i + lane]);
  }
  for (; i < values.size(); ++i) best[0] = better(best[0], values[i]);
  return better(better(best[0], best[1]), better(best[2], best[3]));
}
double Largest(std::span<const double> values) {
  return Best(values, -kInfinity, [](double a, double b) { return std::max(a, b); });
}
double Least(std::span<const double> values) {
  return Best(values, kInfinity, [](double a, double b) { return std::min(a, b); });
}

}  // namespace

const Admission& AdmissionPlanner::Decide(int layer, std::span<const int> misses, int free_slots,
                                          Exchange exchange) {
  StartView(layer, misses, free_slots, exchange);
  if (static_cast<size_t>(free_slots) < misses.size()) {
    FindResidents();
    FindShownDonors();
  }
  FindCandidates();
  if (only_worth_more_ && owed_ <= 0) NarrowExchange();
  return AskPolicy();
}

const Admission& AdmissionPlanner::DecideWithoutVictims(int layer, std::span<const int> misses,
                                                        int free_slots) {
  StartView(layer, misses, free_slots, Exchange::kFree);
  FindCandidates();
  return AskPolicy();
}

void AdmissionPlanner::StartView(int layer, std::span<const int> misses, int free_slots,
                                 Exchange exchange) {
  layer_ = layer;
  misses_ = misses;
  free_slots_ = free_slots;
  owed_ = std::max(0, state_.floors[layer] - state_.slots.layer_resident()[layer]);
  only_worth_more_ = AdmitsOnlyWorthMore(state_.policy);
  exchange_ = exchange;
  state_.Rank(layer, &ranking_);
  miss_worths_.resize(misses.size());
  for (size_t i = 0; i < misses.size(); ++i) miss_worths_[i] = ranking_.worths[misses[i]];
  residents_.Start(ranking_.worths.size());
  shown_donors_.Start(kMaxDonorsShown + 1);
  least_worth_ = kInfinity;
}

// Those that the best of the misses may displace; never what is kept, whose worth is infinite.
void AdmissionPlanner::FindResidents() {
  best_worth_ = only_worth_more_ ? Largest(miss_worths_) : kInfinity;
  const std::span<const int64_t> last_use_steps = state_.routing.last_use_steps(layer_);
  const int64_t in_use_from = state_.routing.step() + (exchange_ == Exchange::kByDevice ? 0 : 1);
  state_.slots.VisitAdmitted(layer_, [&](int expert, int32_t slot) {
    const double worth = ranking_.worths[expert];
    // All are asked, without a branch.
    const auto displaced = static_cast<unsigned>(worth < best_worth_);
    const auto idle = static_cast<unsigned>(last_use_steps[expert] < in_use_from);
    const auto evictable = static_cast<unsigned>(state_.slots.Evictable(slot));
    residents_.AddIf((displaced & idle & evictable) != 0, expert, worth);
  });
  least_worth_ = Least(residents_.worths());
}

// As many as there may be admissions.
void AdmissionPlanner::FindShownDonors() {
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
      if (worth < best_worth_ || owed_ > 0) {
        shown_donors_.AddIf(true, {.slot = donors_[i], .view = expert}, worth);
        least_worth_ = std::min(least_worth_, worth);
      }
      if (++shown == 1) wanted = std::min(wanted, MostAdmissions());
    }
  };
  show();
  if (owed_ > 0 && shown_donors_.empty() && age > 0) {
    FindDonors();
    show();
  }
}

// Beyond the free slots the policy exchanges the best miss for the least worthy victim, then the
// next for the next, while the miss is worth enough more. What it keeps, did it go on while the
// miss is worth more at all, are thus the most worthy of misses and victims together: for every
// worth,
//  - if as many residents are below it as misses beyond the free slots reach it, no victim does;
//  - if as many misses beyond the free slots reach it as victims are below it, all candidates do.
// (A donor may turn out to be at its floor, and so is a victim only for the second.) Worths are
// looked at in steps of a scale from the least victim to the best miss, by counting once.
void AdmissionPlanner::NarrowExchange() {
  const size_t shown = shown_misses_.size() + residents_.size() + shown_donors_.size();
  if (shown <= kFewShown || best_worth_ == kInfinity) return;
  const double steps_per_worth = (kScaleSteps - 1) / (best_worth_ - least_worth_);
  if (!(steps_per_worth < kInfinity) || steps_per_worth <= 0) return;
  const auto step_of = [&](double worth) {
    return static_cast<int>(std::max(worth - least_worth_, 0.0) * steps_per_worth);
  };
  std::array<uint16_t, kScaleSteps> own = {};  // misses and residents at each step
  std::array<uint16_t, kScaleSteps> donors = {};
  for (double worth : shown_misses_.worths()) ++own[step_of(worth)];
  for (double worth : residents_.worths()) ++own[step_of(worth)];
  for (double worth : shown_donors_.worths()) ++donors[step_of(worth)];
  const auto kept = static_cast<int32_t>(residents_.size()) + free_slots_;
  const auto kept_at_most = kept + static_cast<int32_t>(shown_donors_.size());
  int victims_below = kScaleSteps;
  int32_t reached = 0;  // by misses and residents
  int candidates_from = kScaleSteps;
  int32_t all_reached = 0;
  for (int step = kScaleSteps; step-- > 0;) {
    reached += own[step];
    all_reached += own[step] + donors[step];
    victims_below = reached <= kept ? step : victims_below;
    candidates_from -= all_reached < kept_at_most ? 1 : 0;
  }
  --candidates_from;
  residents_.KeepIf([&](double worth) { return step_of(worth) < victims_below; });
  shown_donors_.KeepIf([&](double worth) { return step_of(worth) < victims_below; });
  shown_misses_.KeepIf([&](double worth) { return step_of(worth) >= candidates_from; });
}

size_t AdmissionPlanner::MostAdmissions() const {
  if (!only_worth_more_) return misses_.size();
  size_t worth_more = 0;
  for (double worth : miss_worths_) worth_more += worth > least_worth_ ? 1 : 0;
  return std::min(misses_.size(), worth_more + free_slots_ + owed_);
}

// Those for which there may be a place: the best for free slots and floors, and what is worth more
// than some resident.
void AdmissionPlanner::FindCandidates() {
  const size_t places = static_cast<size_t>(free_slots_) + static_cast<size_t>(owed_);
  if (places >= misses_.size()) return ListCandidates(-kInfinity);
  ListCandidates(only_worth_more_ ? least_worth_ : -kInfinity);
  if (shown_misses_.size() >= places) return;
  best_.resize(places);
  std::partial_sort_copy(miss_worths_.begin(), miss_worths_.end(), best_.begin(), best_.end(),
                         std::greater<>());
  ListCandidates(std::nextafter(best_.back(), -kInfinity));
}

// The misses worth more than `above`.
void AdmissionPlanner::ListCandidates(double above) {
  shown_misses_.Start(misses_.size());
  for (size_t i = 0; i < misses_.size(); ++i) {
    shown_misses_.AddIf(miss_worths_[i] > above, static_cast<int32_t>(i), miss_worths_[i]);
  }
}

void AdmissionPlanner::ShowView() {
  candidates_.clear();
  for (int32_t miss : shown_misses_.items()) SetView(misses_[miss], &candidates_.emplace_back());
  evictable_.clear();
  evictable_slots_.clear();
  for (int expert : residents_.items()) {
    SetView(expert, &evictable_.emplace_back());
    evictable_slots_.push_back(state_.slots.SlotOf({layer_, expert}));
  }
  for (const ShownDonor& donor : shown_donors_.items()) {
    evictable_.push_back(donor.view);
    evictable_slots_.push_back(donor.slot);
  }
}

const Admission& AdmissionPlanner::AskPolicy() {
  admission_.admitted.clear();
  admission_.victims.clear();
  if (shown_misses_.empty()) return admission_;
  ShowView();
  const double uses_per_heat = exchange_ == Exchange::kByDevice ? state_.routing.unit() : 0;
  const Plan plan = MakePlan(state_.policy, {.layer = layer_,
                                             .candidates = candidates_,
                                             .evictable = evictable_,
                                             .free_slots = free_slots_,
                                             .layer_resident = state_.slots.layer_resident(),
                                             .layer_floor = state_.floors,
                                             .uses_per_heat = uses_per_heat});
  for (int32_t candidate : plan.admissions) {
    admission_.admitted.push_back(shown_misses_.items()[candidate]);
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
