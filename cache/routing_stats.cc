#include "cache/routing_stats.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace moed::cache {
namespace {

// Far from the largest double, so that sums of millions of tokens fit above it.
constexpr double kLargestScale = 1e200;

// Persistence is that of the last few hundred steps.
constexpr double kPersistenceFade = 1 - 1.0 / 256;
// Uses without repeats that are assumed to begin with, so that a few steps prove nothing.
constexpr double kPersistencePrior = 100;

// Worth of a recent use, in uses, per unit of persistence. Simulated on the demo model's routing
// and on made-up routing that repeats 18 to 45 % of a token's experts: 10 to 40 are alike within a
// percent of the optimum, where any fixed weight loses several on one or the other.
constexpr double kRecentWeight = 30;

// Recent heat that has faded to this is none.
constexpr double kLeastFade = 1.0 / (int64_t{1} << 31);

// What the contexts of tokens take at most.
constexpr int64_t kTokenBytes = 8'000'000;

// Worth of a certain use in the next step, as a share of what an expert used in every step is
// worth.
constexpr double kSuccessorWeight = 1;

}  // namespace

RoutingStats::RoutingStats(const ExpertIndex& index, int top_k, double half_life_steps)
    : index_(index),
      raw_heat_(index.total_experts(), 0),
      recent_heat_(index.total_experts(), 0),
      last_use_step_(index.total_experts(), -1),
      tokens_total_(index.total_experts(), 0),
      layers_(index.num_layers()),
      successors_(index),
      tokens_(index, top_k, std::min(kTokenBytes, kMaxBytes - successors_.bytes())),
      growth_(std::exp2(1.0 / half_life_steps)),
      successor_weight_(kSuccessorWeight / (1 - 1 / growth_)) {}

void RoutingStats::BeginStep() {
  ++step_;
  tokens_.BeginStep();
  for (Persistence& layer : layers_) {
    layer.recent_fade = layer.recent_fade > kLeastFade ? layer.recent_fade / 2 : 0;
  }
  scale_ *= growth_;
  if (scale_ < kLargestScale) return;
  for (double& raw_heat : raw_heat_) raw_heat /= scale_;
  scale_ = 1;
}

void RoutingStats::ObserveLayer(int layer, std::span<const ExpertLoad> experts) {
  const int32_t first = index_.FirstOf(layer);
  double* const raw_heat = raw_heat_.data() + first;
  double* const recent_heat = recent_heat_.data() + first;
  int64_t* const last_use_step = last_use_step_.data() + first;
  int64_t* const tokens_total = tokens_total_.data() + first;
  Persistence& persistence = layers_[layer];
  const double fade = std::exchange(persistence.recent_fade, 1);
  for (int expert = 0; expert < index_.num_experts(layer); ++expert) recent_heat[expert] *= fade;
  // Local, because the compiler cannot know that the rows do not hold them.
  const int64_t step = step_;
  const double scale = scale_;
  const double uses_per_heat = (1 - 1 / growth_) / scale;
  int64_t repeats = 0;
  double expected_repeats = 0;
  for (const ExpertLoad& load : experts) {
    const int32_t expert = load.expert;
    const double weight = load.weight;
    const double heat = raw_heat[expert];
    repeats += last_use_step[expert] == step - 1 ? 1 : 0;
    expected_repeats += std::min(1.0, heat * uses_per_heat);
    raw_heat[expert] = heat + weight * scale;
    recent_heat[expert] += weight;
    last_use_step[expert] = step;
    tokens_total[expert] += load.tokens;
  }
  persistence.Add(static_cast<double>(experts.size()), static_cast<double>(repeats),
                  expected_repeats);
  successors_.ObserveLayer(layer, experts);
  tokens_.ObserveLayer(layer, experts);
}

void RoutingStats::Persistence::Add(double new_uses, double new_repeats,
                                    double new_expected_repeats) {
  uses = uses * kPersistenceFade + new_uses;
  repeats = repeats * kPersistenceFade + new_repeats;
  expected_repeats = expected_repeats * kPersistenceFade + new_expected_repeats;
  const double excess = repeats - expected_repeats;
  recent_weight = kRecentWeight * std::max(0.0, excess) / (uses + kPersistencePrior);
}

void RoutingStats::RawRecentHeats(int layer, double prediction_share,
                                  std::span<double> raw_recent_heats) const {
  const RecentWeights weights = WeightsOf(layer);
  const double* const recent_heat = recent_heat_.data() + index_.FirstOf(layer);
  for (size_t i = 0; i < raw_recent_heats.size(); ++i) {
    raw_recent_heats[i] = weights.recent_heat * recent_heat[i];
  }
  const std::span<const float> after_experts = successors_.NextUses(layer);
  for (size_t i = 0; i < after_experts.size(); ++i) {
    raw_recent_heats[i] += prediction_share * weights.after_experts * after_experts[i];
  }
  const std::span<const float> after_token = tokens_.NextUses(layer);
  for (size_t i = 0; i < after_token.size(); ++i) {
    raw_recent_heats[i] += prediction_share * weights.after_token * after_token[i];
  }
}

void RoutingStats::Observe(const RoutingTrace& trace) {
  BeginStep();
  for (const LayerRouting& layer : trace.layers) ObserveLayer(layer.layer, layer.experts);
}

void RoutingStats::RestoreHeat(ExpertKey key, double heat) {
  raw_heat_[index_.Of(key)] = heat * scale_;
}

int64_t RoutingStats::bytes() const {
  const size_t row_bytes = 2 * sizeof(double) + 2 * sizeof(int64_t);
  return static_cast<int64_t>(raw_heat_.size() * row_bytes + layers_.size() * sizeof(Persistence)) +
         successors_.bytes() + tokens_.bytes();
}

void RoutingStats::ResetTotals() { std::fill(tokens_total_.begin(), tokens_total_.end(), 0); }

}  // namespace moed::cache
