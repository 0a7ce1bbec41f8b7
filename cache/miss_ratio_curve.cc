#include "cache/miss_ratio_curve.h"

#include <algorithm>
#include <array>
#include <bit>
#include <numeric>

#include "cache/slot_floors.h"

namespace moed::cache {
namespace {

// A step weighs 1/e after this many more.
constexpr float kFadeSteps = 4096;

// Predictions decide which residents stay, but fetch nothing: a cache that held whatever is
// predicted would hit up to six points more than a real one on the demo model's routing, one that
// heeds no predictions up to three less. With a tenth of them the curve is within two or little
// more, on the traces that it was not chosen by too (docs/PERFORMANCE.md).
constexpr double kPredictionShare = 0.1;

// Experts that may be sorted for each step.
constexpr int64_t kSortedExperts = 192;

// The bits of a float that is not negative order as the float does: this less these bits rises as
// worth falls, and is this for no worth at all.
constexpr uint32_t kNeverUsed = 0x7FFFFFFF;

}  // namespace

MissRatioCurve::MissRatioCurve(const ExpertIndex& index, int top_k, bool has_scratch)
    : index_(index),
      top_k_(top_k),
      has_scratch_(has_scratch),
      largest_floor_(3 * top_k),
      sample_steps_(std::max<int64_t>(1, index.total_experts() / kSortedExperts)),
      depth_(index.total_experts(), 0),
      uses_(index.total_experts() + 1, 0) {
  for (int layer = 0; layer < index.num_layers(); ++layer) {
    layers_with_experts_ += index.num_experts(layer) > 0 ? 1 : 0;
  }
}

void MissRatioCurve::BeginStep(const RoutingStats& stats) {
  if (sampling_) estimate_ = nullptr;
  const int64_t step = step_++;
  sampling_ = Samples(step);
  if (!sampling_) return;
  TakeDepths(stats);
  const bool every_step = step < sample_steps_;
  weight_ = every_step ? 1 / static_cast<float>(sample_steps_) : 1;
  const float fade = 1 - (every_step ? 1 : static_cast<float>(sample_steps_)) / kFadeSteps;
  for (float& uses : uses_) uses *= fade;
  demands_ *= fade;
  routed_ *= fade;
}

bool MissRatioCurve::Samples(int64_t step) const {
  if (step < sample_steps_) return true;
  const auto period = static_cast<uint64_t>(step / sample_steps_);
  const uint64_t random = (period * 0x9E3779B97F4A7C15) >> 32;
  return step % sample_steps_ == static_cast<int64_t>(random) % sample_steps_;
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
    stats.RawRecentHeats(layer, kPredictionShare, recent_heats);
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
    uses_[depth_[index_.Of({layer, load.expert})]] += weight_;
    routed_ += weight_ * static_cast<float>(load.tokens);
  }
  demands_ += weight_ * static_cast<float>(experts.size());
}

int64_t MissRatioCurve::bytes() const {
  const size_t experts = depth_.size();
  const size_t estimate = (experts + 1) * sizeof(float);
  return static_cast<int64_t>(2 * experts * sizeof(Ranked) + experts * sizeof(int32_t) +
                              uses_.size() * sizeof(float) + estimate);
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
