#include "cache/successors.h"

#include <algorithm>

namespace moed::cache {
namespace {

// An expert remembers about its last thousand uses: from then on each new one counts more than the
// one before, which is to fade the old ones, until the sums are scaled back.
constexpr float kMaxUses = 1000;
constexpr float kMaxWeight = 1e6F;
// Uses before an expert's successors are believed in half.
constexpr float kPriorUses = 4;

}  // namespace

Successors::Successors(const ExpertIndex& index) : index_(index) {
  int64_t pairs = 0;
  for (int layer = 0; layer < index.num_layers(); ++layer) {
    first_pair_.push_back(pairs);
    pairs += int64_t{index.num_experts(layer)} * index.num_experts(layer);
  }
  if (pairs > kMaxPairs) return;
  pairs_.resize(pairs, 0);
  uses_.resize(index.total_experts(), 0);
  use_weight_.resize(index.total_experts(), 1);
  next_.resize(index.total_experts(), 0);
  previous_.resize(index.num_layers());
}

void Successors::ObserveLayer(int layer, std::span<const ExpertLoad> experts) {
  if (pairs_.empty()) return;
  if (experts.size() > kMaxExperts) {
    previous_[layer].clear();
    return;
  }
  for (int32_t before : previous_[layer]) Learn(layer, before, experts);
  previous_[layer].clear();
  for (const ExpertLoad& load : experts) previous_[layer].push_back(load.expert);
  Predict(layer);
}

void Successors::Learn(int layer, int32_t before, std::span<const ExpertLoad> experts) {
  const int32_t expert = index_.Of({layer, before});
  float* const row = RowOf(layer, before);
  float& weight = use_weight_[expert];
  if (weight > kMaxWeight) {
    for (int i = 0; i < index_.num_experts(layer); ++i) row[i] /= weight;
    uses_[expert] /= weight;
    weight = 1;
  }
  if (uses_[expert] >= kMaxUses * weight) weight *= kMaxUses / (kMaxUses - 1);
  uses_[expert] += weight;
  for (const ExpertLoad& load : experts) row[load.expert] += weight;
}

void Successors::Predict(int layer) {
  const int count = index_.num_experts(layer);
  float* const next = next_.data() + index_.FirstOf(layer);
  std::fill_n(next, count, 0.0F);
  for (int32_t before : previous_[layer]) {
    const int32_t expert = index_.Of({layer, before});
    if (uses_[expert] == 0) continue;
    const float uses = uses_[expert] / use_weight_[expert];
    const float belief = uses / (uses + kPriorUses) / static_cast<float>(previous_[layer].size());
    const float share = belief / uses_[expert];
    const float* const row = RowOf(layer, before);
    for (int i = 0; i < count; ++i) next[i] += share * row[i];
  }
}

}  // namespace moed::cache
