// How hot every expert is, from what the routers chose: last use, decayed frequencies, totals.
// Owned by the cache, engine thread only. Each property is a row of numbers per layer: observing a
// layer is one pass over the experts touched, ranking it a few passes over short arrays.
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
  int64_t last_use_step(ExpertKey key) const {
    return last_use_step_[index_.Of(key)];
  }  // -1: never
  int64_t tokens_total(ExpertKey key) const { return tokens_total_[index_.Of(key)]; }
  // Comparable with each other until the next BeginStep.
  double raw_heat(ExpertKey key) const { return raw_heat_[index_.Of(key)]; }
  // What recent uses add to the worth of an expert, on the scale of raw_heat.
  double raw_recent_heat(ExpertKey key) const;
  // In uses: a use in this step counts its weight in full.
  double heat(ExpertKey key) const { return raw_heat(key) / scale_; }

  // The same of all experts of a layer: [experts].
  std::span<const int64_t> last_use_steps(int layer) const { return Row(last_use_step_, layer); }
  std::span<const int64_t> tokens_totals(int layer) const { return Row(tokens_total_, layer); }
  std::span<const double> raw_heats(int layer) const { return Row(raw_heat_, layer); }
  // `prediction_share`: how much of what successors predict is in it; 1: as raw_recent_heat.
  void RawRecentHeats(int layer, double prediction_share, std::span<double> raw_recent_heats) const;
  // Uses for each unit of raw heat.
  double unit() const { return 1 / scale_; }

  int64_t bytes() const;

 private:
  // Simulated on the demo model's routing: 0.5 to 0.8 are alike within half a percent.
  static constexpr float kTokenTrust = 0.6F;

  // Of one layer, fading: uses, those of experts used the step before, those expected of heat.
  struct Persistence {
    double uses = 0;
    double repeats = 0;
    double expected_repeats = 0;
    double recent_weight = 0;
    double recent_fade = 0;  // what recent_heat_ has faded to since the layer was observed

    void Add(double new_uses, double new_repeats, double new_expected_repeats);
  };
  // What the parts of a layer's raw recent heat weigh: recent_heat_, and the probabilities that the
  // next step uses an expert, going by the experts and by the token of this one.
  struct RecentWeights {
    double recent_heat = 0;
    double after_experts = 0;
    double after_token = 0;
  };
  RecentWeights WeightsOf(int layer) const;

  template <typename T>
  std::span<const T> Row(const std::vector<T>& values, int layer) const {
    return {values.data() + index_.FirstOf(layer), static_cast<size_t>(index_.num_experts(layer))};
  }

  ExpertIndex index_;
  std::vector<double> raw_heat_;        // [all experts]
  std::vector<double> recent_heat_;     // [all experts]
  std::vector<int64_t> last_use_step_;  // [all experts]
  std::vector<int64_t> tokens_total_;   // [all experts]
  std::vector<Persistence> layers_;     // [layers]
  Successors successors_;
  TokenSuccessors tokens_;
  double growth_;            // 2^(1 / half_life)
  double successor_weight_;  // in uses
  double scale_ = 1;         // weight of a use in this step
  int64_t step_ = 0;
};

inline RoutingStats::RecentWeights RoutingStats::WeightsOf(int layer) const {
  // Of a token that came before mostly what followed it counts.
  const double token_share = kTokenTrust * tokens_.Belief(layer);
  return {.recent_heat = scale_ * layers_[layer].recent_weight * layers_[layer].recent_fade,
          .after_experts = scale_ * successor_weight_ * (1 - token_share),
          .after_token = scale_ * successor_weight_ * token_share};
}

inline double RoutingStats::raw_recent_heat(ExpertKey key) const {
  const RecentWeights weights = WeightsOf(key.layer);
  return weights.recent_heat * recent_heat_[index_.Of(key)] +
         weights.after_experts * successors_.NextUse(key) +
         weights.after_token * tokens_.NextUse(key);
}

}  // namespace moed::cache
