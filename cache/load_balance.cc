#include "cache/load_balance.h"

#include <algorithm>
#include <numeric>

namespace moed::cache {
namespace {

// A step weighs 1/e after some 512 more. Tokens are taken every so many.
constexpr float kFade = 1 - 1.0F / 512;
constexpr int64_t kTakeSteps = 32;
constexpr float kTakeFade = 1 - static_cast<float>(kTakeSteps) / 512;

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
      taken_(index.total_experts(), 0) {}

void LoadBalance::EndStep(const RoutingStats& stats) {
  if (stats.step() % kTakeSteps == 0) TakeTokens(stats);
}

void LoadBalance::TakeTokens(const RoutingStats& stats) {
  size_t i = 0;
  for (int layer = 0; layer < index_.num_layers(); ++layer) {
    for (int64_t total : stats.tokens_totals(layer)) {
      tokens_[i] = tokens_[i] * kTakeFade + static_cast<float>(total - taken_[i]);
      taken_[i++] = total;
    }
  }
}

void LoadBalance::BeforeReset(const RoutingStats& stats) {
  TakeTokens(stats);
  std::fill(taken_.begin(), taken_.end(), 0);
}

void LoadBalance::ObserveProbabilities(int layer, std::span<const float> sums, int rows) {
  if (rows < 1) return;
  float* const probability = probability_.data() + index_.FirstOf(layer);
  for (size_t i = 0; i < sums.size(); ++i) {
    probability[i] = probability[i] * kFade + sums[i] / static_cast<float>(rows);
  }
}

std::vector<LayerBalance> LoadBalance::Balance(const RoutingStats& stats) const {
  std::vector<LayerBalance> balance;
  balance.reserve(index_.num_layers());
  for (int layer = 0; layer < index_.num_layers(); ++layer) {
    balance.push_back(BalanceOf(layer, stats));
  }
  return balance;
}

LayerBalance LoadBalance::BalanceOf(int layer, const RoutingStats& stats) const {
  const int32_t first = index_.FirstOf(layer);
  const auto experts = static_cast<size_t>(index_.num_experts(layer));
  LayerBalance balance;
  balance.probability = Shares({probability_.data() + first, experts});
  std::vector<float> tokens(tokens_.begin() + first, tokens_.begin() + first + experts);
  for (size_t i = 0; i < experts; ++i) {
    tokens[i] += static_cast<float>(stats.tokens_totals(layer)[i] - taken_[first + i]);
  }
  balance.token_share = Shares(tokens);
  const auto n = static_cast<double>(experts);
  if (!balance.probability.empty()) {
    double squares = 0;
    for (double p : balance.probability) squares += p * p;
    balance.auxiliary_loss = (n * squares - 1) * (n * squares - 1);
  }
  if (balance.token_share.empty()) return balance;
  balance.imbalance = n * *std::max_element(balance.token_share.begin(), balance.token_share.end());
  for (int64_t last_use : stats.last_use_steps(layer)) {
    // Before the window is full, an expert may just not have had its turn.
    const int64_t unused = stats.step() - std::max<int64_t>(last_use, 0);
    if (unused >= kDeadSteps) ++balance.dead_experts;
  }
  return balance;
}

}  // namespace moed::cache
