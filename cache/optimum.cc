#include "cache/optimum.h"

#include <iterator>
#include <limits>
#include <set>
#include <utility>
#include <vector>

namespace moed::cache {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

// One use of one expert; `time` counts (step, layer) pairs in running order.
struct Use {
  int64_t time;
  int32_t expert;     // ExpertIndex::Of
  int64_t next_time;  // of the same expert, or kNever
};

std::vector<Use> UsesOf(const ExpertIndex& index, int layer, std::span<const RoutingTrace> traces) {
  std::vector<Use> uses;
  int64_t time = 0;
  for (const RoutingTrace& trace : traces) {
    for (const LayerRouting& routing : trace.layers) {
      ++time;
      if (layer >= 0 && routing.layer != layer) continue;
      for (const ExpertLoad& load : routing.experts) {
        uses.push_back({time, index.Of({routing.layer, load.expert}), kNever});
      }
    }
  }
  std::vector<int64_t> next(index.total_experts(), kNever);
  for (auto use = uses.rbegin(); use != uses.rend(); ++use) {
    use->next_time = std::exchange(next[use->expert], use->time);
  }
  return uses;
}

HitCount Optimum(int num_slots, const std::vector<Use>& uses) {
  HitCount count;
  std::set<std::pair<int64_t, int32_t>> kept;  // (next use, expert)
  for (size_t begin = 0, end = 0; begin < uses.size(); begin = end) {
    // All experts of one moment are served before any of them is kept.
    for (; end < uses.size() && uses[end].time == uses[begin].time; ++end) {
      const bool hit = kept.erase({uses[end].time, uses[end].expert}) > 0;
      ++(hit ? count.hits : count.misses);
    }
    for (size_t i = begin; i < end; ++i) {
      if (uses[i].next_time != kNever) kept.emplace(uses[i].next_time, uses[i].expert);
    }
    while (kept.size() > static_cast<size_t>(num_slots)) kept.erase(std::prev(kept.end()));
  }
  return count;
}

}  // namespace

HitCount OptimumOnePool(const ExpertIndex& index, int num_slots,
                        std::span<const RoutingTrace> traces) {
  return Optimum(num_slots, UsesOf(index, /*layer=*/-1, traces));
}

HitCount OptimumPerLayer(const ExpertIndex& index, int slots_per_layer,
                         std::span<const RoutingTrace> traces) {
  HitCount sum;
  for (int layer = 0; layer < index.num_layers(); ++layer) {
    const HitCount count = Optimum(slots_per_layer, UsesOf(index, layer, traces));
    sum.hits += count.hits;
    sum.misses += count.misses;
  }
  return sum;
}

}  // namespace moed::cache
