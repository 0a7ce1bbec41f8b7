// What the cache costs a step: statistics, demand, policy, pins and fills of all layers of a model
// of Qwen3-30B-A3B's shape, with routing that drifts as sequences do. Goal: 100 us at batch 32.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "cache/expert_cache.h"
#include "cache/routing_replay.h"

namespace moed::cache {
namespace {

constexpr int kLayers = 48;
constexpr int kExperts = 128;
constexpr int kTopK = 8;
constexpr int kSteps = 256;  // recorded, then repeated

// Each sequence keeps nearly half of its experts from one token to the next, as measured of
// Qwen3-30B-A3B.
std::vector<RoutingTrace> RecordRouting(int batch) {
  std::mt19937 random(1);
  std::vector<std::vector<int>> chosen(batch * kLayers);
  std::vector<RoutingTrace> traces(kSteps);
  for (RoutingTrace& trace : traces) {
    for (int layer = 0; layer < kLayers; ++layer) {
      std::vector<ExpertLoad> loads(kExperts);
      for (int expert = 0; expert < kExperts; ++expert) loads[expert].expert = expert;
      for (int sequence = 0; sequence < batch; ++sequence) {
        std::vector<int>& experts = chosen[sequence * kLayers + layer];
        std::erase_if(experts, [&](int) { return random() % 100 < 55; });
        while (experts.size() < kTopK) {
          const int expert = static_cast<int>(random() % kExperts);
          if (std::find(experts.begin(), experts.end(), expert) == experts.end()) {
            experts.push_back(expert);
          }
        }
        for (int expert : experts) {
          ++loads[expert].tokens;
          loads[expert].weight += 1;
        }
      }
      std::erase_if(loads, [](const ExpertLoad& load) { return load.tokens == 0; });
      trace.layers.push_back({.layer = layer, .experts = std::move(loads)});
    }
  }
  return traces;
}

// Arguments: batch, residents in percent of all experts.
void BM_HostDrivenStep(benchmark::State& state) {
  const std::vector<RoutingTrace> traces = RecordRouting(static_cast<int>(state.range(0)));
  const int num_slots = static_cast<int>(kLayers * kExperts * state.range(1) / 100);
  std::unique_ptr<ExpertCache> cache =
      *ExpertCache::Create({.experts_per_layer = std::vector<int>(kLayers, kExperts),
                            .top_k = kTopK,
                            .num_slots = num_slots});
  Replay(traces, *cache);
  size_t step = 0;
  for (auto _ : state) ReplayStep(traces[step++ % kSteps], *cache);
  const CacheStats stats = cache->Stats();
  double hits = 0;
  double demands = 0;
  for (const LayerStats& layer : stats.layers) {
    hits += static_cast<double>(layer.hits_total);
    demands += static_cast<double>(layer.hits_total + layer.misses_total);
  }
  state.counters["hit_rate"] = hits / demands;
}
BENCHMARK(BM_HostDrivenStep)
    ->ArgsProduct({{1, 8, 32}, {25, 50, 100}})
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace moed::cache

BENCHMARK_MAIN();
