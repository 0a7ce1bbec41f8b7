#include "cache/miss_ratio_curve.h"

#include <algorithm>
#include <array>
#include <bit>
#include <numeric>

#include "cache/slot_floors.h"

namespace moed::cache {
namespace {

// A sample weighs 1/e after this many more: some 4000 steps.
constexpr float kFade = 1 - 1.0F / 128;

// The bits of a float that is not negative order as the float does: this less these bits rises as
// worth falls, and is this for no worth at all.
constexpr uint32_t kNeverUsed = 0x7FFFFFFF;

}  // namespace

MissRatioCurve::MissRatioCurve(const ExpertIndex& index, int top_k, bool has_scratch)
    : index_(index),
      top_k_(top_k),
      has_scratch_(has_scratch),
      largest_floor_(3 * top_k),
      depth_(index.total_experts(), 0),
      uses_(index.total_experts() + 1, 0) {
  for (int layer = 0; layer < index.num_layers(); ++layer) {
    layers_with_experts_ += index.num_experts(layer) > 0 ? 1 : 0;
  }
}

void MissRatioCurve::BeginStep(const RoutingStats& stats) {
  if (sampling_) estimate_ = nullptr;
  sampling_ = step_++ % kSampleSteps == 0;
  if (!sampling_) return;
  TakeDepths(stats);
  for (float& uses : uses_) uses *= kFade;
  demands_ *= kFade;
  routed_ *= kFade;
}

void MissRatioCurve::TakeDepths(const RoutingStats& stats) {
  SortByWorth(stats);
  // By rank within its layer, as far as floors reach, and then by worth: a counting sort.
  std::vector<int32_t> seen(index_.num_layers(), 0);
  std::vector<int32_t> tier_begin(largest_floor_ + 2, 0);
  for (Ranked& expert : ranked_) {
    expert.tier = std::min(seen[expert.layer]++, largest_floor_);
    ++tier_begin[expert.tier + 1];
  }
  std::partial_sum(tier_begin.begin(), tier_begin.end(), tier_begin.begin());
  for (const Ranked& expert : ranked_) {
    const int32_t depth = tier_begin[expert.tier]++;
    depth_[expert.index] = expert.coldness == kNeverUsed ? index_.total_experts() : depth;
  }
}

// Fills ranked_, the most worthy first, by a radix sort.
void MissRatioCurve::SortByWorth(const RoutingStats& stats) {
  ranked_.clear();
  std::vector<double> recent_heats;
  for (int layer = 0; layer < index_.num_layers(); ++layer) {
    const std::span<const double> heats = stats.raw_heats(layer);
    recent_heats.resize(heats.size());
    stats.RawRecentHeats(layer, recent_heats);
    for (size_t expert = 0; expert < heats.size(); ++expert) {
      const auto worth = static_cast<float>((heats[expert] + recent_heats[expert]) * stats.unit());
      ranked_.push_back({.coldness = kNeverUsed - std::bit_cast<uint32_t>(worth),
                         .index = index_.FirstOf(layer) + static_cast<int32_t>(expert),
                         .layer = layer});
    }
  }
  constexpr int kDigitBits = 11;
  constexpr uint32_t kDigits = 1 << kDigitBits;
  sorted_.resize(ranked_.size());
  for (int shift = 0; shift < 32; shift += kDigitBits) {
    std::array<int32_t, kDigits + 1> begin = {};
    for (const Ranked& expert : ranked_) ++begin[(expert.coldness >> shift) % kDigits + 1];
    std::partial_sum(begin.begin(), begin.end(), begin.begin());
    for (const Ranked& expert : ranked_) {
      sorted_[begin[(expert.coldness >> shift) % kDigits]++] = expert;
    }
    ranked_.swap(sorted_);
  }
}

void MissRatioCurve::ObserveLayer(int layer, std::span<const ExpertLoad> experts) {
  if (!sampling_) return;
  for (const ExpertLoad& load : experts) {
    ++uses_[depth_[index_.Of({layer, load.expert})]];
    routed_ += load.tokens;
  }
  demands_ += static_cast<double>(experts.size());
}

int32_t MissRatioCurve::Residents(int32_t num_slots) const {
  num_slots = std::clamp(num_slots, 0, index_.total_experts());
  const int32_t scratch = has_scratch_ ? ScratchSlots(index_, top_k_, num_slots) : 0;
  return std::max(num_slots - scratch, 0);
}

double MissRatioCurve::HitRate(int32_t num_slots) const {
  const double total = std::accumulate(uses_.begin(), uses_.end(), 0.0);
  if (total == 0) return 0;
  return std::accumulate(uses_.begin(), uses_.begin() + Residents(num_slots), 0.0) / total;
}

std::shared_ptr<const BudgetEstimate> MissRatioCurve::Estimate() {
  if (estimate_ != nullptr) return estimate_;
  std::vector<double> hits(uses_.size() + 1, 0);  // by residents
  std::partial_sum(uses_.begin(), uses_.end(), hits.begin() + 1);
  const double total = hits.back();
  auto estimate = std::make_shared<BudgetEstimate>();
  for (int32_t slots = 0; slots <= index_.total_experts(); ++slots) {
    const double rate = total == 0 ? 0 : hits[Residents(slots)] / total;
    estimate->hit_rate.push_back(static_cast<float>(rate));
  }
  const double tokens = routed_ / top_k_ / std::max(layers_with_experts_, 1);
  if (tokens > 0) estimate->demands_per_token = demands_ / tokens;
  estimate_ = std::move(estimate);
  return estimate_;
}

}  // namespace moed::cache
