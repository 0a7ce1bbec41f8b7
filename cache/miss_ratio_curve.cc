#include "cache/miss_ratio_curve.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "cache/policy.h"
#include "cache/slot_floors.h"

namespace moed::cache {
namespace {

// A sample weighs 1/e after this many more: some 4000 steps.
constexpr float kFade = 1 - 1.0F / 128;

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
  struct Expert {
    int32_t tier;  // rank within its layer, as far as floors reach
    double worth;
    int32_t index;
  };
  std::vector<Expert> experts;
  experts.reserve(index_.total_experts());
  for (int layer = 0; layer < index_.num_layers(); ++layer) {
    const auto first = static_cast<int64_t>(experts.size());
    for (int expert = 0; expert < index_.num_experts(layer); ++expert) {
      const ExpertKey key{layer, expert};
      const ExpertView view{.key = key,
                            .last_use_step = stats.last_use_step(key),
                            .heat = stats.raw_heat(key),
                            .recent_heat = stats.raw_recent_heat(key)};
      const double worth = Worth(PolicyKind::kRecencyFrequency, view);
      experts.push_back({largest_floor_, worth, index_.Of(key)});
    }
    const auto begin = experts.begin() + first;
    const int64_t ranked = std::min<int64_t>(largest_floor_, experts.end() - begin);
    std::partial_sort(begin, begin + ranked, experts.end(),
                      [](const Expert& a, const Expert& b) { return a.worth > b.worth; });
    for (int64_t rank = 0; rank < ranked; ++rank) begin[rank].tier = static_cast<int32_t>(rank);
  }
  std::sort(experts.begin(), experts.end(), [](const Expert& a, const Expert& b) {
    return std::pair(a.tier, -a.worth) < std::pair(b.tier, -b.worth);
  });
  for (size_t i = 0; i < experts.size(); ++i) {
    const bool never_used = experts[i].worth == 0;
    depth_[experts[i].index] = never_used ? index_.total_experts() : static_cast<int32_t>(i);
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
