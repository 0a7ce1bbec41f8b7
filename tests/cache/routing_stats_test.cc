#include "cache/routing_stats.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "cache/miss_ratio_curve.h"

namespace moed::cache {
namespace {

const std::vector<int> kTwoLayers = {4, 3};

TEST(RoutingStatsTest, NeverUsedExpertHasNoLastUse) {
  RoutingStats stats((ExpertIndex(kTwoLayers)), 2, 8);
  EXPECT_EQ(stats.last_use_step({1, 2}), -1);
  EXPECT_EQ(stats.heat({1, 2}), 0);
}

TEST(RoutingStatsTest, HeatHalvesEveryHalfLife) {
  RoutingStats stats(ExpertIndex(kTwoLayers), 2, 8);
  stats.Observe({.layers = {{.layer = 0, .experts = {{.expert = 1, .tokens = 3, .weight = 2}}}}});
  EXPECT_DOUBLE_EQ(stats.heat({0, 1}), 2);
  for (int i = 0; i < 8; ++i) stats.BeginStep();
  EXPECT_NEAR(stats.heat({0, 1}), 1, 1e-12);
  for (int i = 0; i < 8; ++i) stats.BeginStep();
  EXPECT_NEAR(stats.heat({0, 1}), 0.5, 1e-12);
  EXPECT_EQ(stats.last_use_step({0, 1}), 1);
  EXPECT_EQ(stats.tokens_total({0, 1}), 3);
}

// A layer at once says what its experts say one by one.
TEST(RoutingStatsTest, RowsAgreeWithSingleExperts) {
  const std::vector<int> layers = {16, 0, 9};
  RoutingStats stats(ExpertIndex(layers), 2, 8);
  std::mt19937 random(3);
  for (int step = 0; step < 200; ++step) {
    stats.BeginStep();
    for (int layer : {0, 2}) {
      if (random() % 8 == 0) continue;  // a step that ended early
      std::vector<ExpertLoad> loads = {{static_cast<int32_t>(random() % 8), 1, 1}};
      loads.push_back({8, 1, 1});
      stats.ObserveLayer(layer, loads);
    }
    for (int layer : {0, 2}) {
      std::vector<double> recent(layers[layer]);
      stats.RawRecentHeats(layer, 1, recent);
      for (int expert = 0; expert < layers[layer]; ++expert) {
        const ExpertKey key{layer, expert};
        ASSERT_DOUBLE_EQ(recent[expert], stats.raw_recent_heat(key));
        ASSERT_EQ(stats.raw_heats(layer)[expert], stats.raw_heat(key));
        ASSERT_EQ(stats.last_use_steps(layer)[expert], stats.last_use_step(key));
        ASSERT_EQ(stats.tokens_totals(layer)[expert], stats.tokens_total(key));
      }
    }
  }
}

TEST(RoutingStatsTest, LongPrefillWeighsAsOneSequence) {
  RoutingStats stats(ExpertIndex(kTwoLayers), 2, 8);
  // One sequence decodes one token to expert 0; another prefills 1000 tokens to experts 1 and 2.
  const std::vector<ExpertLoad> loads = {{.expert = 0, .tokens = 1, .weight = 1},
                                         {.expert = 1, .tokens = 500, .weight = 0.5},
                                         {.expert = 2, .tokens = 500, .weight = 0.5}};
  stats.BeginStep();
  stats.ObserveLayer(0, loads);
  EXPECT_GT(stats.raw_heat({0, 0}), stats.raw_heat({0, 1}));
  EXPECT_EQ(stats.tokens_total({0, 1}), 500);
}

TEST(RoutingStatsTest, RecentUseIsWorthMoreWhereUsesRepeat) {
  RoutingStats repeating(ExpertIndex(kTwoLayers), 2, 32);
  RoutingStats scattered(ExpertIndex(kTwoLayers), 2, 32);
  for (int step = 0; step < 400; ++step) {
    // Each of four experts is used equally often: in runs of ten, or never twice running.
    repeating.BeginStep();
    scattered.BeginStep();
    repeating.ObserveLayer(0, std::vector<ExpertLoad>{{step / 10 % 4, 1, 1}});
    scattered.ObserveLayer(0, std::vector<ExpertLoad>{{step % 4, 1, 1}});
  }
  EXPECT_GT(repeating.raw_recent_heat({0, 3}), repeating.raw_heat({0, 3}) / 2);
  EXPECT_EQ(scattered.raw_recent_heat({0, 3}), 0);
}

TEST(RoutingStatsTest, MemoryIsBoundedWhateverTheModel) {
  // Of the largest of them the rows of numbers alone are more than the rest of the limit.
  const std::vector<std::vector<int>> models = {
      std::vector<int>(6, 32),   std::vector<int>(36, 128), std::vector<int>(48, 128),
      std::vector<int>(48, 256), std::vector<int>(58, 256), std::vector<int>(48, 512)};
  for (const std::vector<int>& experts : models) {
    const ExpertIndex index(experts);
    EXPECT_LE(RoutingStats(index, 8, 32).bytes(),
              RoutingStats::kMaxBytes + int64_t{40} * index.total_experts())
        << experts.size() << " layers of " << experts[0];
    const MissRatioCurve curve(index, 8, /*has_scratch=*/true);
    EXPECT_LE(RoutingStats(index, 8, 32).bytes() + curve.bytes(), 16'000'000);
  }
}

TEST(RoutingStatsTest, ATokenSeenBeforeTellsWhatFollows) {
  const std::vector<int> layers = {16, 16};
  RoutingStats stats(ExpertIndex(layers), 2, 32);
  const auto step = [&](int token, int expert) {
    stats.Observe(
        {.layers = {{0, {{token, 1, 1}, {token + 1, 1, 1}}}, {1, {{expert, 1, 1}, {15, 1, 1}}}}});
  };
  for (int round = 0; round < 100; ++round) {
    step(0, 1);
    step(4, 2);
    step(8, 1);
    step(12, 3);
  }
  // Both tokens use experts 1 and 15 of the second layer; they are followed by 2 and by 3.
  step(0, 1);
  const ExpertKey two = {1, 2};
  const ExpertKey three = {1, 3};
  EXPECT_GT(stats.raw_recent_heat(two), 2 * stats.raw_recent_heat(three));
  step(4, 2);
  step(8, 1);
  EXPECT_GT(stats.raw_recent_heat(three), 2 * stats.raw_recent_heat(two));
}

TEST(RoutingStatsTest, ResettingTotalsKeepsHeat) {
  RoutingStats stats(ExpertIndex(kTwoLayers), 2, 8);
  stats.Observe({.layers = {{.layer = 1, .experts = {{.expert = 2, .tokens = 3, .weight = 3}}}}});
  stats.ResetTotals();
  EXPECT_EQ(stats.tokens_total({1, 2}), 0);
  EXPECT_DOUBLE_EQ(stats.heat({1, 2}), 3);
}

// Long enough that the stored scale is renewed several times.
TEST(RoutingStatsTest, AgreesWithEagerDecayOverManySteps) {
  constexpr double kHalfLife = 4;
  RoutingStats stats(ExpertIndex(kTwoLayers), 2, kHalfLife);
  std::vector<double> expected(4, 0);
  std::mt19937 random(7);
  for (int step = 0; step < 20000; ++step) {
    for (double& heat : expected) heat *= std::exp2(-1 / kHalfLife);
    std::vector<ExpertLoad> loads;
    for (int expert = 0; expert < 4; ++expert) {
      if (random() % (expert + 2) != 0) continue;
      loads.push_back({.expert = expert, .tokens = 1, .weight = 1});
      expected[expert] += 1;
    }
    stats.BeginStep();
    stats.ObserveLayer(0, loads);
    for (int expert = 0; expert < 4; ++expert) {
      ASSERT_NEAR(stats.heat({0, expert}), expected[expert], 1e-9 * (1 + expected[expert]))
          << "step " << step << " expert " << expert;
    }
  }
}

}  // namespace
}  // namespace moed::cache
