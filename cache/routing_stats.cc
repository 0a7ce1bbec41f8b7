#include "cache/routing_stats.h"

#include <cmath>

namespace moed::cache {
namespace {

// Far from the largest double, so that sums of millions of tokens fit above it.
constexpr double kLargestScale = 1e200;

}  // namespace

RoutingStats::RoutingStats(const ExpertIndex& index, double half_life_steps)
    : index_(index), entries_(index.total_experts()), growth_(std::exp2(1.0 / half_life_steps)) {}

void RoutingStats::BeginStep() {
  ++step_;
  scale_ *= growth_;
  if (scale_ < kLargestScale) return;
  for (Entry& entry : entries_) entry.raw_heat /= scale_;
  scale_ = 1;
}

void RoutingStats::ObserveLayer(int layer, std::span<const ExpertLoad> experts) {
  Entry* entries = entries_.data() + index_.FirstOf(layer);
  for (const ExpertLoad& load : experts) {
    Entry& entry = entries[load.expert];
    entry.raw_heat += load.weight * scale_;
    entry.recent_heat = RecentHeat(entry, step_) + load.weight;
    entry.last_use_step = step_;
    entry.tokens_total += load.tokens;
  }
}

void RoutingStats::Observe(const RoutingTrace& trace) {
  BeginStep();
  for (const LayerRouting& layer : trace.layers) ObserveLayer(layer.layer, layer.experts);
}

void RoutingStats::RestoreHeat(ExpertKey key, double heat) {
  entries_[index_.Of(key)].raw_heat = heat * scale_;
}

void RoutingStats::ResetTotals() {
  for (Entry& entry : entries_) entry.tokens_total = 0;
}

}  // namespace moed::cache
