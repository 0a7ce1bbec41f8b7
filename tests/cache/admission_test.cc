#include "cache/admission.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <utility>
#include <vector>

#include "cache/cache_state.h"

namespace moed::cache {
namespace {

constexpr int kExperts = 48;

// One layer, some of its experts resident, with heats that often tie.
class RandomLayer {
 public:
  RandomLayer(PolicyKind policy, uint32_t seed)
      : random_(seed),
        state_(ExpertIndex(std::vector<int>{kExperts}), /*top_k_experts=*/2, policy,
               CacheDriver::kHost, SlotDivision::kByWorth, kExperts / 2, kExperts / 2) {
    for (int step = 0; step < 6; ++step) ObserveStep();
    for (int expert : Some(random_() % (kExperts / 2 + 1))) {
      ExpertPin pin = state_.slots.Take({0, expert}, /*admitted=*/true);
      state_.slots.Filled(pin.slot(), state_.slots.slot(pin.slot()).generation);
      if (random_() % 8 == 0) pins_.push_back(std::move(pin));
      if (random_() % 16 == 0) state_.keep[expert] = 1;
    }
    state_.num_kept = static_cast<int32_t>(std::count(state_.keep.begin(), state_.keep.end(), 1));
    for (int expert : Some(1 + random_() % kExperts)) {
      if (state_.slots.SlotOf({0, expert}) < 0) misses_.push_back(expert);
    }
    state_.floors[0] = std::min(state_.floors[0], state_.slots.layer_resident()[0]);
    free_slots_ = static_cast<int>(random_() % 4);
  }

  // What the planner decides, as experts.
  std::pair<std::vector<int>, std::vector<int>> Planned(Exchange exchange) const {
    AdmissionPlanner planner(&state_);
    const Admission& admission = planner.Decide(0, misses_, free_slots_, exchange);
    std::vector<int> admitted;
    std::vector<int> victims;
    for (int32_t miss : admission.admitted) admitted.push_back(misses_[miss]);
    for (int32_t slot : admission.victims) victims.push_back(state_.slots.slot(slot).key.expert);
    return {admitted, victims};
  }

  // What the policy says if it is shown everything.
  std::pair<std::vector<int>, std::vector<int>> Naive(Exchange exchange) const {
    std::vector<ExpertView> candidates;
    std::vector<ExpertView> evictable;
    for (int expert : misses_) candidates.push_back(state_.View({0, expert}));
    for (int expert = 0; expert < kExperts; ++expert) {
      const int32_t slot = state_.slots.SlotOf({0, expert});
      if (slot < 0 || !state_.Evictable(slot)) continue;
      const ExpertView view = state_.View({0, expert});
      const bool idle = view.last_use_step < state_.routing.step();
      if (exchange == Exchange::kFree || idle) evictable.push_back(view);
    }
    const double uses_per_heat = exchange == Exchange::kByDevice ? state_.routing.unit() : 0;
    const Plan plan = MakePlan(state_.policy, {.layer = 0,
                                               .candidates = candidates,
                                               .evictable = evictable,
                                               .free_slots = free_slots_,
                                               .layer_resident = state_.slots.layer_resident(),
                                               .layer_floor = state_.floors,
                                               .uses_per_heat = uses_per_heat});
    std::vector<int> admitted;
    std::vector<int> victims;
    for (int32_t i : plan.admissions) admitted.push_back(candidates[i].key.expert);
    for (int32_t i : plan.evictions) victims.push_back(evictable[i].key.expert);
    return {admitted, victims};
  }

 private:
  std::vector<int> Some(size_t count) {
    std::vector<int> experts(kExperts);
    for (int expert = 0; expert < kExperts; ++expert) experts[expert] = expert;
    std::shuffle(experts.begin(), experts.end(), random_);
    experts.resize(count);
    return experts;
  }
  void ObserveStep() {
    state_.BeginStep();
    std::vector<ExpertLoad> loads;
    for (int expert : Some(kExperts / 2)) {
      const auto tokens = static_cast<int32_t>(1 + random_() % 3);
      loads.push_back({.expert = expert, .tokens = tokens, .weight = static_cast<float>(tokens)});
    }
    state_.Observe(0, loads);
  }

  std::mt19937 random_;
  CacheState state_;
  std::vector<ExpertPin> pins_;  // let go before the state
  std::vector<int> misses_;
  int free_slots_ = 0;
};

// It shows the policy only what can change places, and that must change nothing.
TEST(AdmissionTest, PlansAsIfThePolicySawEveryMissAndResident) {
  for (PolicyKind policy :
       {PolicyKind::kRecencyFrequency, PolicyKind::kLru, PolicyKind::kLfu, PolicyKind::kStatic}) {
    for (uint32_t seed = 0; seed < 500; ++seed) {
      const RandomLayer layer(policy, seed);
      for (const Exchange exchange : {Exchange::kFree, Exchange::kByDevice}) {
        EXPECT_EQ(layer.Planned(exchange), layer.Naive(exchange))
            << PolicyName(policy) << ", seed " << seed;
      }
    }
  }
}

}  // namespace
}  // namespace moed::cache
