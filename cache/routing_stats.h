// How hot every expert is, from what the routers chose: last use, decayed frequencies, totals.
// Owned by the cache, engine thread only. Observing costs O(experts touched); decay is lazy.
//
// Heat after step n is the sum over past uses of weight * 2^-((n - use) / half_life): an
// exponentially decayed frequency. Stored as forward decay (Cormode et al., "Forward Decay", ICDE
// 2009): each use adds weight * 2^(use / half_life), so that old entries need no touch and heats of
// one moment compare as stored.
//
// Heat tells what the workload uses; what the next token will use is also what the last one used,
// in some models much more than in others. So recent heat, with a half-life of one step, is worth
// as much more as the layer's persistence says: the share of uses that repeat the step before,
// beyond those that heat alone predicts, measured all the time. To it comes what the experts of the
// last step (Successors) and its token (TokenSuccessors) were followed by before.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cache/expert_index.h"
#include "cache/expert_key.h"
#include "cache/routing_trace.h"
#include "cache/successors.h"
#include "cache/token_successors.h"

namespace moed::cache {

class RoutingStats {
 public:
  // Memory in all, whatever the model: kMaxBytes beside some 40 bytes an expert.
  static constexpr int64_t kMaxBytes = 14'500'000;

  // half_life_steps > 0. top_k: experts that the router gives a token.
  RoutingStats(const ExpertIndex& index, int top_k, double half_life_steps);

  // A step begins: the clock of last use and decay moves by one.
  void BeginStep();
  // What one layer's router chose in the current step; once per layer and step.
  void ObserveLayer(int layer, std::span<const ExpertLoad> experts);
  // A whole step at once: BeginStep, then every layer.
  void Observe(const RoutingTrace& trace);
  // What an earlier run learned: the heat of an expert not used in this one, in uses.
  void RestoreHeat(ExpertKey key, double heat);
  // Zeroes the totals that metrics show; heat and last use stay.
  void ResetTotals();

  int64_t step() const { return step_; }  // steps begun so far
  int64_t last_use_step(ExpertKey key) const { return At(key).last_use_step; }  // -1: never
  int64_t tokens_total(ExpertKey key) const { return At(key).tokens_total; }
  // Comparable with each other until the next BeginStep.
  double raw_heat(ExpertKey key) const { return At(key).raw_heat; }
  // What recent uses add to the worth of an expert, on the scale of raw_heat.
  double raw_recent_heat(ExpertKey key) const {
    return scale_ * (layers_[key.layer].recent_weight * RecentHeat(At(key)) +
                     successor_weight_ * NextUse(key));
  }
  // In uses: a use in this step counts its weight in full.
  double heat(ExpertKey key) const { return At(key).raw_heat / scale_; }
  int64_t bytes() const;

 private:
  // Simulated on the demo model's routing: 0.5 to 0.8 are alike within half a percent.
  static constexpr float kTokenTrust = 0.6F;

  struct Entry {
    double raw_heat = 0;
    double recent_heat = 0;  // as of last_use_step
    int64_t last_use_step = -1;
    int64_t tokens_total = 0;
  };
  // Of one layer, fading: uses, those of experts used the step before, those expected of heat.
  struct Persistence {
    double uses = 0;
    double repeats = 0;
    double expected_repeats = 0;
    double recent_weight = 0;
  };
  double RecentHeat(const Entry& entry) const {
    const int64_t age = step_ - entry.last_use_step;
    return age >= 32 ? 0 : entry.recent_heat / static_cast<double>(int64_t{1} << age);
  }
  // The probability that the next step uses the expert: what followed the experts, and of a token
  // that came before mostly what followed it.
  float NextUse(ExpertKey key) const {
    const float after_experts = successors_.NextUse(key);
    const float after_token = tokens_.NextUse(key);
    return after_experts + kTokenTrust * tokens_.Belief(key.layer) * (after_token - after_experts);
  }
  const Entry& At(ExpertKey key) const { return entries_[index_.Of(key)]; }

  ExpertIndex index_;
  std::vector<Entry> entries_;       // [all experts]
  std::vector<Persistence> layers_;  // [layers]
  Successors successors_;
  TokenSuccessors tokens_;
  double growth_;            // 2^(1 / half_life)
  double successor_weight_;  // in uses
  double scale_ = 1;         // weight of a use in this step
  int64_t step_ = 0;
};

}  // namespace moed::cache
