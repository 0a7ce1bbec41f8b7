#include "cache/successors.h"

#include <algorithm>

namespace moed::cache {
namespace {

// What an expert's uses weigh against new ones: it remembers about the last thousand.
constexpr float kMaxUses = 1000;
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
  next_.resize(index.total_experts(), 0);
  previous_.resize(index.num_layers());
}

void Successors::ObserveLayer(int layer, std::span<const ExpertLoad> experts) {
  if (pairs_.empty()) return;
  float* const next = next_.data() + index_.FirstOf(layer);
  std::fill_n(next, index_.num_experts(layer), 0.0F);
  if (experts.size() > kMaxExperts) {
    previous_[layer].clear();
    return;
  }
  Learn(layer, experts);
  Predict(layer, experts);
}

void Successors::Learn(int layer, std::span<const ExpertLoad> experts) {
  const int count = index_.num_experts(layer);
  for (int32_t before : previous_[layer]) {
    float& uses = uses_[index_.Of({layer, before})];
    uses = std::min(uses + 1, kMaxUses);
    float* const row = RowOf(layer, before);
    const float fade = 1 - 1 / uses;
    for (int expert = 0; expert < count; ++expert) row[expert] *= fade;
    for (const ExpertLoad& load : experts) row[load.expert] += 1 / uses;
  }
  previous_[layer].clear();
  for (const ExpertLoad& load : experts) previous_[layer].push_back(load.expert);
}

void Successors::Predict(int layer, std::span<const ExpertLoad> experts) {
  const int count = index_.num_experts(layer);
  float* const next = next_.data() + index_.FirstOf(layer);
  for (const ExpertLoad& load : experts) {
    const float uses = uses_[index_.Of({layer, load.expert})];
    const float belief = uses / (uses + kPriorUses) / static_cast<float>(experts.size());
    const float* const row = RowOf(layer, load.expert);
    for (int expert = 0; expert < count; ++expert) next[expert] += belief * row[expert];
  }
}

}  // namespace moed::cache
