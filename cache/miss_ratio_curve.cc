#include "cache/miss_ratio_curve.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "cache/policy.h"

namespace moed::cache {
namespace {

// A sample weighs 1/e after this many more: some 4000 steps.
constexpr float kFade = 1 - 1.0F / 128;

}  // namespace

MissRatioCurve::MissRatioCurve(const ExpertIndex& index, int top_k)
    : index_(index),
      largest_floor_(3 * top_k),
      depth_(index.total_experts(), 0),
      uses_(index.total_experts() + 1, 0) {}

void MissRatioCurve::BeginStep(const RoutingStats& stats) {
  sampling_ = step_++ % kSampleSteps == 0;
  if (!sampling_) return;
  TakeDepths(stats);
  for (float& uses : uses_) uses *= kFade;
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
  for (const ExpertLoad& load : experts) ++uses_[depth_[index_.Of({layer, load.expert})]];
}

double MissRatioCurve::HitRate(int32_t resident_slots) const {
  const double total = std::accumulate(uses_.begin(), uses_.end(), 0.0);
  if (total == 0) return 0;
  const auto end = uses_.begin() + std::clamp(resident_slots, 0, index_.total_experts());
  return std::accumulate(uses_.begin(), end, 0.0) / total;
}

}  // namespace moed::cache
