// What another budget would buy: the hit rate at any number of slots, from the live routing.
// Owned by the cache, engine thread only.
//
// A cache that keeps the hottest experts is a stack: what it holds with n slots it also holds with
// n + 1. So every expert has one depth, the least number of residents among which it would be, and
// a use hits at all budgets above its depth at that moment (Mattson et al., "Evaluation techniques
// for storage hierarchies", 1970). Floors keep that true: first every layer's hottest, then every
// layer's second, down to the largest floor; then the rest by heat over all layers.
//
// Depths cost one sort of all experts, so they are taken only every kSampleSteps steps; memory is
// two numbers an expert, whatever the length of the run.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cache/expert_index.h"
#include "cache/routing_stats.h"
#include "cache/routing_trace.h"

namespace moed::cache {

class MissRatioCurve {
 public:
  static constexpr int64_t kSampleSteps = 32;

  MissRatioCurve(const ExpertIndex& index, int top_k);

  // A step begins; `stats` does not know its routing yet.
  void BeginStep(const RoutingStats& stats);
  // What one layer's router chose in it.
  void ObserveLayer(int layer, std::span<const ExpertLoad> experts);

  // The share of demands, 0 to 1, that would have been hits with `resident_slots` slots for
  // residents, over the last few thousand steps; 0 before the first sample.
  double HitRate(int32_t resident_slots) const;

 private:
  void TakeDepths(const RoutingStats& stats);

  ExpertIndex index_;
  int32_t largest_floor_;
  int64_t step_ = 0;
  bool sampling_ = false;
  std::vector<int32_t> depth_;  // [all experts], as of the sampled step
  std::vector<float> uses_;     // [all experts + 1]: uses by depth, fading; the last: first uses
};

}  // namespace moed::cache
