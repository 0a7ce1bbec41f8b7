// What the cache costs a step: statistics, demand, policy, pins and fills of all layers of a model
// of Qwen3-30B-A3B's shape, with routing that drifts as sequences do; and what the sketch of the
// hit rate at other budgets and the recording of routing take of that. Goals: 100 us at batch 32, 1
// % of a core for the sketch, 16 MB for it and the statistics, 2 % of a step for recording.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "cache/device_residency.h"
#include "cache/expert_cache.h"
#include "cache/miss_ratio_curve.h"
#include "cache/routing_log.h"
#include "cache/routing_replay.h"
#include "tests/cache/device_table_model.h"

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

std::unique_ptr<ExpertCache> MakeCache(int64_t percent, CacheDriver driver) {
  return *ExpertCache::Create({.experts_per_layer = std::vector<int>(kLayers, kExperts),
                               .top_k = kTopK,
                               .num_slots = static_cast<int>(kLayers * kExperts * percent / 100),
                               .driver = driver});
}

// Of each recorded step the fastest time: what interruptions and other processes do not reach.
class FastestTimes {
 public:
  void Add(size_t step, double seconds) {
    seconds_[step % kSteps] = std::min(seconds_[step % kSteps], seconds);
  }
  // Microseconds, over the steps that were repeated.
  double Mean(size_t steps) const {
    const size_t count = std::min<size_t>(steps, kSteps);
    return 1e6 * std::accumulate(seconds_.begin(), seconds_.begin() + count, 0.0) /
           static_cast<double>(count);
  }

 private:
  std::vector<double> seconds_ = std::vector<double>(kSteps, 1e9);
};

// What the steps so far did, for each of them.
void Describe(const ExpertCache& cache, benchmark::State& state) {
  HitCount count;
  int64_t admissions = 0;
  const CacheStats stats = cache.Stats();
  for (const LayerStats& layer : stats.layers) {
    count.hits += layer.hits_total;
    count.misses += layer.misses_total;
    admissions += layer.admissions_total;
  }
  const auto steps = static_cast<double>(stats.steps_total);
  state.counters["hit_rate"] = count.hit_rate();
  state.counters["experts"] = static_cast<double>((count.hits + count.misses)) / steps;
  state.counters["admissions"] = static_cast<double>(admissions) / steps;
}

double Seconds(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Fastest: microseconds, the mean over the recorded steps of each one's fastest time.
// Arguments of both: batch, and slots in percent of all experts. A step's routing is copied just
// before, as it has just been made when a model runs; the copy is not timed.
void BM_HostDrivenStep(benchmark::State& state) {
  const std::vector<RoutingTrace> traces = RecordRouting(static_cast<int>(state.range(0)));
  std::unique_ptr<ExpertCache> cache = MakeCache(state.range(1), CacheDriver::kHost);
  Replay(traces, *cache);
  size_t step = 0;
  FastestTimes fastest;
  for (auto _ : state) {
    const RoutingTrace routing = traces[step % kSteps];
    const auto start = std::chrono::steady_clock::now();
    ReplayStep(routing, *cache);
    const double seconds = Seconds(start);
    fastest.Add(step++, seconds);
    state.SetIterationTime(seconds);
  }
  state.counters["fastest"] = fastest.Mean(step);
  Describe(*cache, state);
}
BENCHMARK(BM_HostDrivenStep)
    ->ArgsProduct({{1, 8, 32}, {25, 50, 100}})
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

// The least a device does: follow the edits, fill where allowed, trace what was used.
class Device {
 public:
  void Apply(const TableUpdate& update) { table_.Apply(update); }

  DeviceTrace Run(const RoutingTrace& routing) {
    DeviceTrace trace{.table_number = table_.number()};
    for (const LayerRouting& layer : routing.layers) {
      for (const ExpertLoad& load : layer.experts) trace.uses.push_back(Use(layer, load));
    }
    return trace;
  }

 private:
  DeviceUse Use(const LayerRouting& layer, const ExpertLoad& load) {
    DeviceUse use{
        .layer = layer.layer, .expert = load.expert, .tokens = load.tokens, .weight = load.weight};
    const ExpertKey key{layer.layer, load.expert};
    const auto used = [&](int expert) {
      return std::any_of(layer.experts.begin(), layer.experts.end(),
                         [&](const ExpertLoad& other) { return other.expert == expert; });
    };
    TableEntry entry = table_.entry(key);
    if (entry.slot >= 0) {
      use.kind = DeviceUseKind::kHit;
    } else if (table_.MayFill(key, used)) {
      use.kind = DeviceUseKind::kFilled;
      entry = table_.Fill(key);
    }
    use.slot = entry.slot;
    use.generation = entry.generation;
    return use;
  }

  DeviceTableModel table_ = DeviceTableModel(std::vector<int>(kLayers, kExperts));
};

// Replay of a step and the plan for the next; the device's own work is not timed.
void BM_DeviceDrivenStep(benchmark::State& state) {
  const std::vector<RoutingTrace> traces = RecordRouting(static_cast<int>(state.range(0)));
  std::unique_ptr<ExpertCache> cache = MakeCache(state.range(1), CacheDriver::kDevice);
  Device device;
  TableUpdate update;
  const auto step = [&](const RoutingTrace& routing) {
    const DeviceTrace trace = device.Run(routing);
    const auto start = std::chrono::steady_clock::now();
    if (!cache->device()->Replay(trace).ok()) state.SkipWithError("replay failed");
    const bool edited = cache->device()->Publish(&update);
    const double seconds = Seconds(start);
    if (edited) device.Apply(update);
    return seconds;
  };
  for (const RoutingTrace& routing : traces) step(routing);
  size_t next = 0;
  FastestTimes fastest;
  for (auto _ : state) {
    const double seconds = step(traces[next % kSteps]);
    fastest.Add(next++, seconds);
    state.SetIterationTime(seconds);
  }
  state.counters["fastest"] = fastest.Mean(next);
  Describe(*cache, state);
}
BENCHMARK(BM_DeviceDrivenStep)
    ->ArgsProduct({{1, 8, 32}, {25, 50, 100}})
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

// A step of this shape on an H200 with every expert resident (docs/PERFORMANCE.md): nothing that a
// step costs weighs more in a slower one.
double StepSeconds(int64_t batch) { return batch == 1 ? 2.46e-3 : 15.4e-3; }

// Argument: batch, 1 or 32. step_share: of a core, while such steps follow one another.
void BM_HitRateSketch(benchmark::State& state) {
  const std::vector<RoutingTrace> traces = RecordRouting(static_cast<int>(state.range(0)));
  const ExpertIndex index(std::vector<int>(kLayers, kExperts));
  RoutingStats stats(index, kTopK, 32);
  MissRatioCurve curve(index, kTopK, /*has_scratch=*/true);
  double seconds = 0;
  size_t step = 0;
  for (auto _ : state) {
    const RoutingTrace& routing = traces[step++ % kSteps];
    const auto start = std::chrono::steady_clock::now();
    curve.BeginStep(stats);
    for (const LayerRouting& layer : routing.layers) {
      curve.ObserveLayer(layer.layer, layer.experts);
    }
    benchmark::DoNotOptimize(curve.Estimate());
    const double taken = Seconds(start);
    state.SetIterationTime(taken);
    seconds += taken;
    stats.Observe(routing);
  }
  state.counters["step_share"] =
      seconds / static_cast<double>(state.iterations()) / StepSeconds(state.range(0));
  state.counters["sketch_bytes"] = static_cast<double>(curve.bytes());
  state.counters["statistics_bytes"] = static_cast<double>(stats.bytes());
}
BENCHMARK(BM_HitRateSketch)->Arg(1)->Arg(32)->UseManualTime()->Unit(benchmark::kMicrosecond);

// Argument and step_share as above. Encoding; a thread of its own writes (recording_bench).
void BM_RecordRouting(benchmark::State& state) {
  const std::vector<RoutingTrace> traces = RecordRouting(static_cast<int>(state.range(0)));
  RoutingLogWriter writer({.experts_per_layer = std::vector<int>(kLayers, kExperts),
                           .top_k = kTopK,
                           .expert_bytes = 1,
                           .model = "bench"});
  const auto start = std::chrono::steady_clock::now();
  size_t step = 0;
  size_t bytes = 0;
  for (auto _ : state) {
    writer.BeginStep();
    for (const LayerRouting& layer : traces[step++ % kSteps].layers) {
      writer.ObserveLayer(layer.layer, layer.experts);
    }
    bytes += writer.Take().size();
  }
  const auto steps = static_cast<double>(state.iterations());
  state.counters["step_share"] = Seconds(start) / steps / StepSeconds(state.range(0));
  state.counters["bytes"] = static_cast<double>(bytes) / steps;
}
BENCHMARK(BM_RecordRouting)->Arg(1)->Arg(32)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace moed::cache

BENCHMARK_MAIN();
