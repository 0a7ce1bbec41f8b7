// Which experts of a layer follow which: the share of an expert's uses after which another was used
// in the next step. Text goes on as it went on before, so that this tells more about the next token
// than frequencies do; of a batch of many sequences it tells nothing, so that only steps with few
// experts count. Owned by RoutingStats, engine thread only.
//
// Memory is one float a pair of experts of a layer: bounded, or off for models beyond that.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cache/expert_index.h"
#include "cache/routing_trace.h"

namespace moed::cache {

class Successors {
 public:
  // 14 MB of pairs; 48 layers of 256 experts have 3.1 million.
  static constexpr int64_t kMaxPairs = 3'500'000;
  // Steps that use more experts of a layer are of many sequences, or of a prompt.
  static constexpr size_t kMaxExperts = 32;

  explicit Successors(const ExpertIndex& index);

  // What one layer's router chose in this step.
  void ObserveLayer(int layer, std::span<const ExpertLoad> experts);

  // The probability, 0 to 1, that the next step uses `key`, going by the experts used in the last
  // step observed of its layer; 0 if that had too many.
  float NextUse(ExpertKey key) const {
    const std::span<const float> next = NextUses(key.layer);
    return next.empty() ? 0 : next[key.expert];
  }
  // [experts of the layer], or empty: all are 0.
  std::span<const float> NextUses(int layer) const {
    if (pairs_.empty() || previous_[layer].empty()) return {};
    return {next_.data() + index_.FirstOf(layer), static_cast<size_t>(index_.num_experts(layer))};
  }

  int64_t bytes() const {
    return static_cast<int64_t>((pairs_.size() + uses_.size() + use_weight_.size() + next_.size()) *
                                sizeof(float));
  }

 private:
  float* RowOf(int layer, int expert) {
    return pairs_.data() + first_pair_[layer] + int64_t{expert} * index_.num_experts(layer);
  }
  void Learn(int layer, int32_t before, std::span<const ExpertLoad> experts);
  void Predict(int layer);

  ExpertIndex index_;
  std::vector<int64_t> first_pair_;  // [layers]
  std::vector<float> pairs_;         // [layers][experts][experts], or none: uses after uses
  std::vector<float> uses_;          // [all experts]: uses, as pairs_ count them
  std::vector<float> use_weight_;    // [all experts]: what the next use counts
  std::vector<float> next_;          // [all experts]
  std::vector<std::vector<int32_t>>
      previous_;  // [layers]: experts of the last step; none: too many
};

}  // namespace moed::cache
