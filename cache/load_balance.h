// How evenly the routers use their experts, over a window of some hundred steps: for people and
// dashboards, no policy reads it. Owned by the cache, engine thread only. What the experts were
// given is taken from the statistics' totals now and then, so that steps cost nothing.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cache/expert_index.h"
#include "cache/routing_stats.h"

namespace moed::cache {

struct LayerBalance {
  // (n * sum(p_i^2) - 1)^2, p_i the average probability that the router's softmax gives expert i:
  // the coefficient of variation of p, to the fourth power; 0 if even, (n - 1)^2 if one takes all.
  double auxiliary_loss = 0;
  // The largest share of tokens over the even share 1 / n.
  double imbalance = 0;
  int32_t dead_experts = 0;        // without a token for kDeadSteps
  std::vector<float> probability;  // [experts], p_i; empty until a router was observed
  std::vector<float> token_share;  // [experts], of the tokens routed
};

class LoadBalance {
 public:
  static constexpr int64_t kDeadSteps = 4096;

  explicit LoadBalance(const ExpertIndex& index);

  // A step of `stats` ended.
  void EndStep(const RoutingStats& stats);
  // Sums over `rows` tokens of the probabilities of each expert. `probabilities`: [experts].
  void ObserveProbabilities(int layer, std::span<const float> sums, int rows);

  // Before the totals of `stats` become zero.
  void BeforeReset(const RoutingStats& stats);

  // [layers], as of now; empty vectors for a layer without a router.
  std::vector<LayerBalance> Balance(const RoutingStats& stats) const;

 private:
  LayerBalance BalanceOf(int layer, const RoutingStats& stats) const;
  void TakeTokens(const RoutingStats& stats);

  ExpertIndex index_;
  std::vector<float> probability_;  // [all experts], fading sums
  std::vector<float> tokens_;       // [all experts], fading sums
  std::vector<int64_t> taken_;      // [all experts]: the totals that tokens_ has in it
};

}  // namespace moed::cache
