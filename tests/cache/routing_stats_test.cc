#include "cache/routing_stats.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace moed::cache {
namespace {

const std::vector<int> kTwoLayers = {4, 3};

TEST(RoutingStatsTest, NeverUsedExpertHasNoLastUse) {
  RoutingStats stats((ExpertIndex(kTwoLayers)), 8);
  EXPECT_EQ(stats.last_use_step({1, 2}), -1);
  EXPECT_EQ(stats.heat({1, 2}), 0);
}

TEST(RoutingStatsTest, HeatHalvesEveryHalfLife) {
  RoutingStats stats(ExpertIndex(kTwoLayers), 8);
  stats.Observe({.layers = {{.layer = 0, .experts = {{.expert = 1, .tokens = 3, .weight = 2}}}}});
  EXPECT_DOUBLE_EQ(stats.heat({0, 1}), 2);
  for (int i = 0; i < 8; ++i) stats.BeginStep();
  EXPECT_NEAR(stats.heat({0, 1}), 1, 1e-12);
  for (int i = 0; i < 8; ++i) stats.BeginStep();
  EXPECT_NEAR(stats.heat({0, 1}), 0.5, 1e-12);
  EXPECT_EQ(stats.last_use_step({0, 1}), 1);
  EXPECT_EQ(stats.tokens_total({0, 1}), 3);
}

TEST(RoutingStatsTest, LongPrefillWeighsAsOneSequence) {
  RoutingStats stats(ExpertIndex(kTwoLayers), 8);
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
  RoutingStats repeating(ExpertIndex(kTwoLayers), 32);
  RoutingStats scattered(ExpertIndex(kTwoLayers), 32);
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

TEST(RoutingStatsTest, ResettingTotalsKeepsHeat) {
  RoutingStats stats(ExpertIndex(kTwoLayers), 8);
  stats.Observe({.layers = {{.layer = 1, .experts = {{.expert = 2, .tokens = 3, .weight = 3}}}}});
  stats.ResetTotals();
  EXPECT_EQ(stats.tokens_total({1, 2}), 0);
  EXPECT_DOUBLE_EQ(stats.heat({1, 2}), 3);
}

// Long enough that the stored scale is renewed several times.
TEST(RoutingStatsTest, AgreesWithEagerDecayOverManySteps) {
  constexpr double kHalfLife = 4;
  RoutingStats stats(ExpertIndex(kTwoLayers), kHalfLife);
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
