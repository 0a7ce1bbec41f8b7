// What it costs and brings to let a fill wait for room on the link (FillFits in cold_division.h):
// routing recorded or drawn is replayed through the cache's device-driven side and a device that
// fills at once, then through one that lets fills wait. Prints hit rate and fills a step of both,
// and the time of a layer by what was measured on an H200 and 16 vCPUs in batch 1: a tile of
// Qwen3-30B- A3B's experts takes the link 1.51 us and the CPU 0.78, beside 10 and 12 us that each
// takes at least, and all else 45.
//
// usage: fill_wait_bench [FILE.trace ...]   (scripts/record-traces makes some)
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/internal/raw_logging.h"
#include "cache/expert_cache.h"
#include "cache/routing_log.h"
#include "runtime/backend/cold_division.h"
#include "tests/cache/device_table_model.h"

namespace moed {
namespace {

using cache::DeviceUse;
using cache::DeviceUseKind;
using cache::RoutingTrace;

constexpr int kTiles = 96;
constexpr double kLinkShare = 0.34;

double LayerMicroseconds(double link_cost, double cpu_cost) {
  const double link = link_cost > 0 ? 10 + 1.51 * link_cost : 0;
  const double cpu = cpu_cost > 0 ? 12 + 0.78 * cpu_cost : 0;
  return 45 + std::max({link, cpu, 10.0});
}

// Runs steps by the table, and takes the time that an H200 would.
class Device {
 public:
  Device(const std::vector<int>& experts_per_layer, bool waits)
      : waits_(waits), table_(experts_per_layer) {}

  double microseconds() const { return microseconds_; }

  void Apply(const cache::TableUpdate& update) { table_.Apply(update); }

  cache::DeviceTrace Run(const RoutingTrace& step) {
    cache::DeviceTrace trace = {.table_number = table_.number()};
    for (const cache::LayerRouting& routing : step.layers) RunLayer(routing, &trace.uses);
    return trace;
  }

 private:
  void RunLayer(const cache::LayerRouting& routing, std::vector<DeviceUse>* uses) {
    const auto cost_of = [](const cache::ExpertLoad& load) {
      return backend::ColdCost(kTiles, load.tokens);
    };
    int64_t total = 0;
    int64_t filling = 0;
    for (const cache::ExpertLoad& load : routing.experts) {
      if (table_.entry({routing.layer, load.expert}).slot < 0) total += cost_of(load);
    }
    for (const cache::ExpertLoad& load : routing.experts) {
      DeviceUse use = {.layer = routing.layer,
                       .expert = load.expert,
                       .tokens = load.tokens,
                       .weight = load.weight};
      Place(routing, total, cost_of(load), &filling, &use);
      uses->push_back(use);
    }
    const double link = std::max(static_cast<double>(filling), kLinkShare * total);
    microseconds_ += LayerMicroseconds(link, static_cast<double>(total) - link);
  }

  void Place(const cache::LayerRouting& routing, int64_t total, int64_t cost, int64_t* filling,
             DeviceUse* use) {
    constexpr auto kShare = static_cast<uint32_t>(kLinkShare * backend::kAllOverLink);
    const cache::ExpertKey key{use->layer, use->expert};
    const auto used = [&](int expert) {
      return std::any_of(routing.experts.begin(), routing.experts.end(),
                         [&](const cache::ExpertLoad& load) { return load.expert == expert; });
    };
    cache::TableEntry entry = table_.entry(key);
    if (entry.slot >= 0) {
      use->kind = DeviceUseKind::kHit;
    } else if (table_.MayFill(key, used) &&
               (!waits_ ||
                backend::FillFits(kShare, total, *filling, cost, entry.fill_allowed - 1))) {
      use->kind = DeviceUseKind::kFilled;
      entry = table_.Fill(key);
      *filling += cost;
    } else {
      table_.Wait(key);
      return;
    }
    use->slot = entry.slot;
    use->generation = entry.generation;
  }

  const bool waits_;
  cache::DeviceTableModel table_;
  double microseconds_ = 0;
};

struct Outcome {
  double hit_rate = 0;
  double fills = 0;  // a step
  double microseconds = 0;
};

Outcome Replay(const cache::RoutingLogHeader& model, int num_slots,
               const std::vector<RoutingTrace>& steps, bool waits) {
  const auto cache = cache::ExpertCache::Create({.experts_per_layer = model.experts_per_layer,
                                                 .top_k = model.top_k,
                                                 .num_slots = num_slots,
                                                 .driver = cache::CacheDriver::kDevice})
                         .value();
  Device device(model.experts_per_layer, waits);
  std::optional<cache::DeviceTrace> last;  // which the cache follows beside the next step
  for (const RoutingTrace& step : steps) {
    cache::DeviceTrace trace = device.Run(step);
    if (last.has_value()) {
      const absl::Status followed = cache->device()->Replay(*last);
      ABSL_RAW_CHECK(followed.ok(), followed.ToString().c_str());
      cache::TableUpdate update;
      if (cache->device()->Publish(&update)) device.Apply(update);
    }
    last = std::move(trace);
  }
  double hits = 0;
  double misses = 0;
  double fills = 0;
  for (const cache::LayerStats& layer : cache->Stats().layers) {
    hits += static_cast<double>(layer.hits_total);
    misses += static_cast<double>(layer.misses_total);
    fills += static_cast<double>(layer.admissions_total);
  }
  const auto count = static_cast<double>(steps.size());
  return {hits / (hits + misses), fills / count, device.microseconds() / count};
}

void Print(const cache::RoutingLogHeader& model, const std::vector<RoutingTrace>& steps) {
  const int experts =
      std::accumulate(model.experts_per_layer.begin(), model.experts_per_layer.end(), 0);
  for (const int percent : {15, 30, 50, 66, 75, 90}) {
    const int num_slots = experts * percent / 100;
    const Outcome at_once = Replay(model, num_slots, steps, /*waits=*/false);
    const Outcome waiting = Replay(model, num_slots, steps, /*waits=*/true);
    std::printf(
        "%-24s %3d %%  at once: hit rate %.3f  fills %5.2f  %6.0f us  waiting: %.3f  %5.2f  %6.0f "
        "us  ratio %.3f\n",
        model.model.c_str(), percent, at_once.hit_rate, at_once.fills, at_once.microseconds,
        waiting.hit_rate, waiting.fills, waiting.microseconds,
        waiting.microseconds / at_once.microseconds);
  }
}

// 24 layers of 128 experts, 8 a token, drawn by weights of log-normal spread `spread`, a third of
// them anew every 500 steps; 0: all alike.
std::vector<RoutingTrace> Draw(const cache::RoutingLogHeader& model, double spread) {
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  std::vector<std::vector<double>> weights;
  for (const int experts : model.experts_per_layer) {
    std::vector<double>& layer = weights.emplace_back(experts);
    for (double& weight : layer) weight = std::exp(spread * normal(random));
  }
  std::vector<RoutingTrace> steps(1500);
  for (size_t i = 0; i < steps.size(); ++i) {
    for (size_t layer = 0; layer < weights.size(); ++layer) {
      for (double& weight : weights[layer]) {
        if (i % 500 == 250 && random() % 3 == 0) weight = std::exp(spread * normal(random));
      }
      std::vector<double> left = weights[layer];
      cache::LayerRouting& routing = steps[i].layers.emplace_back();
      routing.layer = static_cast<int32_t>(layer);
      for (int rank = 0; rank < model.top_k; ++rank) {
        const int expert = std::discrete_distribution<int>(left.begin(), left.end())(random);
        left[expert] = 0;
        routing.experts.push_back({.expert = expert, .tokens = 1, .weight = 1});
      }
    }
  }
  return steps;
}

void PrintFile(const char* name) {
  std::ifstream file(name, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), {});
  auto log = cache::ParseRoutingLog(bytes);
  ABSL_RAW_CHECK(log.ok(), log.status().ToString().c_str());
  const std::string path = name;
  log->header.model = path.substr(path.rfind('/') + 1);
  Print(log->header, log->steps);
}

}  // namespace
}  // namespace moed

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) moed::PrintFile(argv[i]);
  for (const double spread : {0.0, 1.3}) {
    const moed::cache::RoutingLogHeader model = {
        .experts_per_layer = std::vector<int>(24, 128),
        .top_k = 8,
        .model = spread == 0 ? "drawn, all alike" : "drawn, skewed, drifting"};
    moed::Print(model, moed::Draw(model, spread));
  }
}
