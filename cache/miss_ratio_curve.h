// What another budget would buy: the hit rate at any number of slots, from the live routing.
// Owned by the cache, engine thread only.
//
// A cache that keeps the hottest experts is a stack: what it holds with n slots it also holds with
// n + 1. So every expert has one depth, the least number of residents among which it would be, and
// a use hits at all budgets above its depth at that moment (Mattson et al., "Evaluation techniques
// for storage hierarchies", 1970). Floors keep that true: first every layer's hottest, then every
// layer's second, down to the largest floor; then the rest by heat over all layers.
//
// Depths cost one sort of all experts, so only some steps are sampled: one at random of as many as
// make the cost of a step the same for models of all sizes, for text has rhythms that a fixed
// distance would meet again and again; and at first all, so that the cold start counts for what it
// is. Memory is some 40 bytes an expert, whatever the length of the run.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cache/expert_index.h"
#include "cache/routing_stats.h"
#include "cache/routing_trace.h"

namespace moed::cache {

// The curve at one moment; immutable.
struct BudgetEstimate {
  // [all experts + 1]: the share of demands, 0 to 1, that would have been hits with as many slots;
  // all zero before the first sample.
  std::vector<float> hit_rate;
  double demands_per_token = 0;  // distinct (step, expert) pairs for each token of the steps
};

class MissRatioCurve {
 public:
  // `has_scratch`: a budget's scratch slots (ScratchSlots) hold no residents.
  MissRatioCurve(const ExpertIndex& index, int top_k, bool has_scratch);

  // Steps of which one is sampled, once there were as many.
  int64_t sample_steps() const { return sample_steps_; }
  int64_t bytes() const;

  // A step begins; `stats` does not know its routing yet.
  void BeginStep(const RoutingStats& stats);
  // What one layer's router chose in it.
  void ObserveLayer(int layer, std::span<const ExpertLoad> experts);

  // The share of demands, 0 to 1, that would have been hits with `num_slots` slots, over the last
  // few thousand steps; 0 before the first sample.
  double HitRate(int32_t num_slots) const;
  // All of it. Changes only with a sample, so the same object is returned in between.
  std::shared_ptr<const BudgetEstimate> Estimate();

 private:
  struct Ranked {
    uint32_t coldness = 0;  // rises as worth falls
    int32_t index = 0;
    int32_t layer = 0;
    int32_t tier = 0;  // rank within its layer, as far as floors reach
  };

  bool Samples(int64_t step) const;
  void TakeDepths(const RoutingStats& stats);
  void SortByWorth(const RoutingStats& stats);
  int32_t Residents(int32_t num_slots) const;

  ExpertIndex index_;
  int top_k_;
  bool has_scratch_;
  int layers_with_experts_ = 0;
  int32_t largest_floor_;
  int64_t sample_steps_;
  int64_t step_ = 0;
  bool sampling_ = false;
  float weight_ = 1;            // of the step that is being sampled
  std::vector<Ranked> ranked_;  // [all experts], of TakeDepths; kept for its memory
  std::vector<Ranked> sorted_;
  std::vector<int32_t> depth_;  // [all experts], as of the sampled step
  std::vector<float> uses_;     // [all experts + 1]: uses by depth, fading; the last: first uses
  double demands_ = 0;          // of sampled steps, fading
  double routed_ = 0;           // (token, expert) pairs of sampled steps, fading
  std::shared_ptr<const BudgetEstimate> estimate_;  // null: to be made from the above
};

}  // namespace moed::cache
