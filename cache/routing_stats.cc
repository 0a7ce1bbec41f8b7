#include "cache/routing_stats.h"

#include <algorithm>
#include <cmath>

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

// What the contexts of tokens take at most.
constexpr int64_t kTokenBytes = 8'000'000;

// Worth of a certain use in the next step, as a share of what an expert used in every step is
// worth.
constexpr double kSuccessorWeight = 1;

}  // namespace

RoutingStats::RoutingStats(const ExpertIndex& index, int top_k, double half_life_steps)
    : index_(index),
      entries_(index.total_experts()),
      layers_(index.num_layers()),
      successors_(index),
      tokens_(index, top_k, std::min(kTokenBytes, kMaxBytes - successors_.bytes())),
      growth_(std::exp2(1.0 / half_life_steps)),
      successor_weight_(kSuccessorWeight / (1 - 1 / growth_)) {}

void RoutingStats::BeginStep() {
  ++step_;
  tokens_.BeginStep();
  scale_ *= growth_;
  if (scale_ < kLargestScale) return;
  for (Entry& entry : entries_) entry.raw_heat /= scale_;
  scale_ = 1;
}

void RoutingStats::ObserveLayer(int layer, std::span<const ExpertLoad> experts) {
  Entry* entries = entries_.data() + index_.FirstOf(layer);
  Persistence& persistence = layers_[layer];
  persistence.uses *= kPersistenceFade;
  persistence.repeats *= kPersistenceFade;
  persistence.expected_repeats *= kPersistenceFade;
  const double uses_per_heat = (1 - 1 / growth_) / scale_;
  for (const ExpertLoad& load : experts) {
    Entry& entry = entries[load.expert];
    persistence.uses += 1;
    persistence.repeats += entry.last_use_step == step_ - 1 ? 1 : 0;
    persistence.expected_repeats += std::min(1.0, entry.raw_heat * uses_per_heat);
    entry.raw_heat += load.weight * scale_;
    entry.recent_heat = RecentHeat(entry) + load.weight;
    entry.last_use_step = step_;
    entry.tokens_total += load.tokens;
  }
  successors_.ObserveLayer(layer, experts);
  tokens_.ObserveLayer(layer, experts);
  const double excess = persistence.repeats - persistence.expected_repeats;
  persistence.recent_weight =
      kRecentWeight * std::max(0.0, excess) / (persistence.uses + kPersistencePrior);
}

void RoutingStats::Observe(const RoutingTrace& trace) {
  BeginStep();
  for (const LayerRouting& layer : trace.layers) ObserveLayer(layer.layer, layer.experts);
}

void RoutingStats::RestoreHeat(ExpertKey key, double heat) {
  entries_[index_.Of(key)].raw_heat = heat * scale_;
}

int64_t RoutingStats::bytes() const {
  return static_cast<int64_t>(entries_.size() * sizeof(Entry) +
                              layers_.size() * sizeof(Persistence)) +
         successors_.bytes() + tokens_.bytes();
}

void RoutingStats::ResetTotals() {
  for (Entry& entry : entries_) entry.tokens_total = 0;
}

}  // namespace moed::cache
