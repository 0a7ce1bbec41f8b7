#include "cache/load_balance.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace moed::cache {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatNear;
using ::testing::IsEmpty;

const ExpertIndex kIndex(std::vector<int>{4, 0});

RoutingStats Statistics() { return RoutingStats(kIndex, 2, 32); }

void Step(const std::vector<ExpertLoad>& loads, RoutingStats& stats, LoadBalance& balance) {
  stats.Observe({.layers = {{.layer = 0, .experts = loads}}});
  balance.EndStep(stats);
}

TEST(LoadBalanceTest, EvenRoutingHasNoLoss) {
  LoadBalance balance(kIndex);
  RoutingStats stats = Statistics();
  Step({{0, 5, 5}, {1, 5, 5}, {2, 5, 5}, {3, 5, 5}}, stats, balance);
  balance.ObserveProbabilities(0, std::vector<float>{2, 2, 2, 2}, 8);
  const LayerBalance layer = balance.Balance(stats)[0];
  EXPECT_NEAR(layer.auxiliary_loss, 0, 1e-6);
  EXPECT_NEAR(layer.imbalance, 1, 1e-6);
  EXPECT_EQ(layer.dead_experts, 0);
}

TEST(LoadBalanceTest, LossIsTheFormulaOverAverageProbabilities) {
  LoadBalance balance(kIndex);
  RoutingStats stats = Statistics();
  Step({{0, 3, 3}, {1, 1, 1}}, stats, balance);
  balance.ObserveProbabilities(0, std::vector<float>{1, 0.5, 0.5, 0}, 2);
  const LayerBalance layer = balance.Balance(stats)[0];
  // p = 1/2, 1/4, 1/4, 0: 4 * (1/4 + 1/16 + 1/16) - 1 = 1/2.
  EXPECT_NEAR(layer.auxiliary_loss, 0.25, 1e-6);
  EXPECT_NEAR(layer.imbalance, 3, 1e-6);
  EXPECT_THAT(layer.probability, ElementsAre(FloatNear(0.5, 1e-6), FloatNear(0.25, 1e-6),
                                             FloatNear(0.25, 1e-6), FloatNear(0, 1e-6)));
  EXPECT_THAT(layer.token_share, ElementsAre(FloatNear(0.75, 1e-6), FloatNear(0.25, 1e-6),
                                             FloatNear(0, 1e-6), FloatNear(0, 1e-6)));
}

TEST(LoadBalanceTest, AnExpertIsDeadAfterAWholeWindow) {
  LoadBalance balance(kIndex);
  RoutingStats stats = Statistics();
  for (int64_t step = 0; step < LoadBalance::kDeadSteps; ++step) {
    Step({{0, 1, 1}, {1, 1, 1}}, stats, balance);
    if (step + 1 < LoadBalance::kDeadSteps) {
      EXPECT_EQ(balance.Balance(stats)[0].dead_experts, 0);
    }
  }
  EXPECT_EQ(balance.Balance(stats)[0].dead_experts, 2);
  stats.ObserveLayer(0, std::vector<ExpertLoad>{{3, 1, 1}});
  EXPECT_EQ(balance.Balance(stats)[0].dead_experts, 1);
}

TEST(LoadBalanceTest, SharesAreThoseOfTheLastSomeHundredSteps) {
  LoadBalance balance(kIndex);
  RoutingStats stats = Statistics();
  for (int step = 0; step < 1000; ++step) Step({{0, 1, 1}}, stats, balance);
  for (int step = 0; step < 512; ++step) Step({{1, 1, 1}}, stats, balance);
  // 1/e of what there was is left: 0.37 * (1 - e^-2) against 1 - 1/e.
  EXPECT_NEAR(balance.Balance(stats)[0].token_share[0], 0.33, 0.02);
  EXPECT_NEAR(balance.Balance(stats)[0].token_share[1], 0.67, 0.02);
}

TEST(LoadBalanceTest, ZeroedTotalsChangeNoShare) {
  LoadBalance balance(kIndex);
  RoutingStats stats = Statistics();
  for (int step = 0; step < 100; ++step) Step({{0, 3, 3}, {1, 1, 1}}, stats, balance);
  balance.BeforeReset(stats);
  stats.ResetTotals();
  EXPECT_NEAR(balance.Balance(stats)[0].token_share[0], 0.75, 1e-6);
  Step({{0, 3, 3}, {1, 1, 1}}, stats, balance);
  EXPECT_NEAR(balance.Balance(stats)[0].token_share[0], 0.75, 1e-6);
}

TEST(LoadBalanceTest, NothingIsSaidOfLayersWithoutTokens) {
  for (const LayerBalance& layer : LoadBalance(kIndex).Balance(Statistics())) {
    EXPECT_THAT(layer.probability, IsEmpty());
    EXPECT_THAT(layer.token_share, IsEmpty());
    EXPECT_EQ(layer.imbalance, 0);
  }
}

}  // namespace
}  // namespace moed::cache
