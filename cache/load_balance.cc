#include "cache/load_balance.h"

#include <algorithm>
#include <numeric>

namespace moed::cache {
namespace {

// A step weighs 1/e after this many more.
constexpr float kFade = 1 - 1.0F / 512;

std::vector<float> Shares(std::span<const float> amounts) {
  const double total = std::accumulate(amounts.begin(), amounts.end(), 0.0);
  if (total == 0) return {};
  std::vector<float> shares;
  for (float amount : amounts) shares.push_back(static_cast<float>(amount / total));
  return shares;
}

}  // namespace

LoadBalance::LoadBalance(const ExpertIndex& index)
    : index_(index),
      probability_(index.total_experts(), 0),
      tokens_(index.total_experts(), 0),
      last_use_(index.total_experts(), -1) {}

void LoadBalance::BeginStep() { ++step_; }

void LoadBalance::ObserveLayer(int layer, std::span<const ExpertLoad> experts) {
  const int first = index_.FirstOf(layer);
  for (int i = first; i < first + index_.num_experts(layer); ++i) tokens_[i] *= kFade;
  for (const ExpertLoad& load : experts) {
    tokens_[first + load.expert] += static_cast<float>(load.tokens);
    last_use_[first + load.expert] = step_;
  }
}

void LoadBalance::ObserveProbabilities(int layer, std::span<const float> sums, int rows) {
  if (rows < 1) return;
  float* const probability = probability_.data() + index_.FirstOf(layer);
  for (size_t i = 0; i < sums.size(); ++i) {
    probability[i] = probability[i] * kFade + sums[i] / static_cast<float>(rows);
  }
}

std::vector<LayerBalance> LoadBalance::Balance() const {
  std::vector<LayerBalance> balance;
  for (int layer = 0; layer < index_.num_layers(); ++layer) balance.push_back(BalanceOf(layer));
  return balance;
}

LayerBalance LoadBalance::BalanceOf(int layer) const {
  const auto first = static_cast<size_t>(index_.FirstOf(layer));
  const auto experts = static_cast<size_t>(index_.num_experts(layer));
  LayerBalance balance;
  balance.probability = Shares({probability_.data() + first, experts});
  balance.token_share = Shares({tokens_.data() + first, experts});
  const auto n = static_cast<double>(experts);
  if (!balance.probability.empty()) {
    double squares = 0;
    for (double p : balance.probability) squares += p * p;
    balance.auxiliary_loss = (n * squares - 1) * (n * squares - 1);
  }
  if (balance.token_share.empty()) return balance;
  balance.imbalance = n * *std::max_element(balance.token_share.begin(), balance.token_share.end());
  for (size_t i = first; i < first + experts; ++i) {
    // Before the window is full, an expert may just not have had its turn.
    const int64_t unused = last_use_[i] < 0 ? step_ : step_ - last_use_[i];
    if (unused >= kDeadSteps) ++balance.dead_experts;
  }
  return balance;
}

}  // namespace moed::cache
