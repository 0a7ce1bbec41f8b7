#include "cache/routing_log.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "cache/expert_cache.h"
#include "cache/routing_replay.h"

namespace moed::cache {
namespace {

const RoutingLogHeader kHeader = {
    .experts_per_layer = {8, 0, 200}, .top_k = 2, .expert_bytes = 4096, .model = "demo"};

// Weights of decodes and of chunks; sometimes a step that skips a layer.
std::vector<RoutingTrace> RandomSteps(int count) {
  std::mt19937 random(1);
  std::vector<RoutingTrace> steps(count);
  for (RoutingTrace& step : steps) {
    for (int layer : {0, 2}) {
      if (random() % 4 == 0) continue;
      LayerRouting& routing = step.layers.emplace_back();
      routing.layer = layer;
      for (int expert = 0; expert < kHeader.experts_per_layer[layer]; ++expert) {
        if (random() % 4 != 0) continue;
        const auto tokens = static_cast<int32_t>(1 + random() % 300);
        const float weight = random() % 2 == 0 ? static_cast<float>(tokens) : 0.37F;
        routing.experts.push_back({expert, tokens, weight});
      }
    }
  }
  std::erase_if(steps, [](const RoutingTrace& step) { return step.layers.empty(); });
  return steps;
}

std::string Serialize(const std::vector<RoutingTrace>& steps) {
  RoutingLogWriter writer(kHeader);
  std::string bytes;
  for (const RoutingTrace& step : steps) {
    writer.BeginStep();
    for (const LayerRouting& layer : step.layers) writer.ObserveLayer(layer.layer, layer.experts);
    bytes += writer.Take();
  }
  return bytes + writer.Take();
}

void ExpectEqual(const RoutingTrace& a, const RoutingTrace& b) {
  ASSERT_EQ(a.layers.size(), b.layers.size());
  for (size_t i = 0; i < a.layers.size(); ++i) {
    EXPECT_EQ(a.layers[i].layer, b.layers[i].layer);
    ASSERT_EQ(a.layers[i].experts.size(), b.layers[i].experts.size());
    for (size_t j = 0; j < a.layers[i].experts.size(); ++j) {
      EXPECT_EQ(a.layers[i].experts[j].expert, b.layers[i].experts[j].expert);
      EXPECT_EQ(a.layers[i].experts[j].tokens, b.layers[i].experts[j].tokens);
      EXPECT_EQ(a.layers[i].experts[j].weight, b.layers[i].experts[j].weight);
    }
  }
}

TEST(RoutingLogTest, ComesBackAsItWasObserved) {
  const std::vector<RoutingTrace> steps = RandomSteps(50);
  const absl::StatusOr<RoutingLog> log = ParseRoutingLog(Serialize(steps));
  ASSERT_TRUE(log.ok()) << log.status();
  EXPECT_FALSE(log->truncated);
  EXPECT_EQ(log->header.experts_per_layer, kHeader.experts_per_layer);
  EXPECT_EQ(log->header.top_k, kHeader.top_k);
  EXPECT_EQ(log->header.expert_bytes, kHeader.expert_bytes);
  EXPECT_EQ(log->header.model, kHeader.model);
  ASSERT_EQ(log->steps.size(), steps.size());
  for (size_t i = 0; i < steps.size(); ++i) ExpectEqual(log->steps[i], steps[i]);
}

TEST(RoutingLogTest, OrderOfExpertsDoesNotMatter) {
  const RoutingTrace step = {.layers = {{0, {{5, 1, 1}, {2, 3, 3}}}}};
  const RoutingTrace sorted = {.layers = {{0, {{2, 3, 3}, {5, 1, 1}}}}};
  EXPECT_EQ(Serialize({step}), Serialize({sorted}));
}

TEST(RoutingLogTest, ADecodeStepTakesTwoBytesAnExpert) {
  const RoutingTrace step = {.layers = {{0, {{1, 1, 1}, {6, 1, 1}}}, {2, {{3, 1, 1}, {90, 1, 1}}}}};
  EXPECT_EQ(Serialize({step, step}).size() - Serialize({step}).size(), 4 * 2 + 2 * 2 + 2u);
}

TEST(RoutingLogTest, CutShortAnywhereItKeepsItsWholeSteps) {
  const std::vector<RoutingTrace> steps = RandomSteps(4);
  const std::string bytes = Serialize(steps);
  const size_t first_step = Serialize({}).size();
  for (size_t length = 0; length < bytes.size(); ++length) {
    const absl::StatusOr<RoutingLog> log = ParseRoutingLog(bytes.substr(0, length));
    if (!log.ok()) {
      EXPECT_EQ(log.status().code(), absl::StatusCode::kDataLoss) << length;
      EXPECT_LT(length, Serialize({steps[0]}).size());
      continue;
    }
    EXPECT_GE(length, first_step);
    ASSERT_LE(log->steps.size(), steps.size());
    for (size_t i = 0; i < log->steps.size(); ++i) ExpectEqual(log->steps[i], steps[i]);
  }
}

TEST(RoutingLogTest, DamageIsFoundOrHarmless) {
  const std::string bytes = Serialize(RandomSteps(6));
  std::mt19937 random(2);
  for (int round = 0; round < 3000; ++round) {
    std::string damaged = bytes;
    damaged[random() % damaged.size()] ^= static_cast<char>(1 << random() % 8);
    const absl::StatusOr<RoutingLog> log = ParseRoutingLog(damaged);
    if (!log.ok()) continue;
    for (const RoutingTrace& step : log->steps) {
      for (const LayerRouting& layer : step.layers) {
        ASSERT_LT(static_cast<size_t>(layer.layer), log->header.experts_per_layer.size());
        for (const ExpertLoad& load : layer.experts) {
          ASSERT_GE(load.expert, 0);
          ASSERT_LT(load.expert, log->header.experts_per_layer[layer.layer]);
          ASSERT_GT(load.tokens, 0);
        }
      }
    }
  }
}

TEST(RoutingLogTest, AnotherVersionIsRefused) {
  std::string bytes = Serialize({});
  bytes[8] = 9;
  EXPECT_EQ(ParseRoutingLog(bytes).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(RoutingLogTest, ACacheRecordsWhatItObserves) {
  std::unique_ptr<ExpertCache> cache = *ExpertCache::Create(
      {.experts_per_layer = kHeader.experts_per_layer, .top_k = 2, .num_slots = 100});
  const std::vector<RoutingTrace> steps = RandomSteps(10);
  ReplayStep(steps[0], *cache);
  EXPECT_EQ(cache->TakeRecording(), "");
  cache->StartRecording("demo", 4096);
  std::string bytes;
  for (size_t i = 1; i < steps.size(); ++i) {
    ReplayStep(steps[i], *cache);
    bytes += cache->TakeRecording();
  }
  EXPECT_EQ(bytes, Serialize({steps.begin() + 1, steps.end()}));
}

}  // namespace
}  // namespace moed::cache
