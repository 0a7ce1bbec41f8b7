#include "cache/simulation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "tests/cache/synthetic_routing.h"

namespace moed::cache {
namespace {

using ::testing::ElementsAre;

constexpr SyntheticRouting kRouting = {.layers = 3, .experts = 32, .top_k = 4};
const SimulatedModel kModel = {.experts_per_layer = std::vector<int>(3, 32), .top_k = 4};

std::vector<RoutingTrace> Steps(int count) {
  SyntheticRouter router(kRouting, 7);
  std::vector<RoutingTrace> traces;
  for (int step = 0; step < count; ++step) traces.push_back(router.Step(0));
  return traces;
}

TEST(SimulationTest, AllExpertsResidentMissesEachOnce) {
  const std::vector<RoutingTrace> traces = Steps(500);
  const absl::StatusOr<SimulationResult> result = Simulate(kModel, {.residents = 96}, traces);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->demands.misses,
            static_cast<int64_t>(MostUsed(kModel, SlotDivision::kByWorth, traces).size()));
  EXPECT_EQ(result->evictions, 0);
}

TEST(SimulationTest, NoPolicyBeatsTheOptimumOfItsDivision) {
  const std::vector<RoutingTrace> traces = Steps(1000);
  for (SlotDivision division : {SlotDivision::kByWorth, SlotDivision::kEqualPerLayer}) {
    for (int residents : {12, 30, 60}) {
      const double best = Optimum(kModel, residents, division, traces).hit_rate();
      for (const char* policy : {"recency-frequency", "lru", "lfu"}) {
        const auto result = Simulate(
            kModel, {.policy = policy, .residents = residents, .division = division}, traces);
        ASSERT_TRUE(result.ok()) << result.status();
        EXPECT_LE(result->demands.hit_rate(), best) << policy << " " << residents;
        EXPECT_GT(result->demands.hit_rate(), 0.3 * best) << policy << " " << residents;
      }
    }
  }
}

TEST(SimulationTest, StaticListServesExactlyItsExperts) {
  const RoutingTrace step = {.layers = {{0, {{1, 1, 1}, {2, 1, 1}}}, {1, {{3, 1, 1}}}}};
  const std::vector<RoutingTrace> traces(10, step);
  const std::vector<ExpertKey> list = {{0, 1}, {1, 3}, {0, 9}};
  const auto result =
      Simulate(kModel, {.policy = "static", .residents = 3, .preload = list}, traces);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->demands.hits, 20);
  EXPECT_EQ(result->demands.misses, 10);
  EXPECT_EQ(result->admissions, 0);
}

TEST(SimulationTest, MostUsedCountsStepsAndTakesLayersInTurn) {
  const RoutingTrace both = {.layers = {{0, {{1, 9, 9}, {2, 1, 1}}}, {1, {{3, 1, 1}}}}};
  const RoutingTrace one = {.layers = {{0, {{2, 1, 1}, {4, 1, 1}}}}};
  const std::vector<RoutingTrace> traces = {both, one, one, both, one};
  EXPECT_THAT(MostUsed(kModel, SlotDivision::kByWorth, traces),
              ElementsAre(ExpertKey{0, 2}, ExpertKey{0, 4}, ExpertKey{0, 1}, ExpertKey{1, 3}));
  EXPECT_THAT(MostUsed(kModel, SlotDivision::kEqualPerLayer, traces),
              ElementsAre(ExpertKey{0, 2}, ExpertKey{1, 3}, ExpertKey{0, 4}, ExpertKey{0, 1}));
}

TEST(SimulationTest, EqualSlotsAreTheNearestToTheBudget) {
  const std::vector<RoutingTrace> traces = Steps(300);
  const int layers = static_cast<int>(kModel.experts_per_layer.size());
  const auto hits = [&](int residents) {
    return Simulate(kModel, {.residents = residents, .division = SlotDivision::kEqualPerLayer},
                    traces)
        ->demands.hits;
  };
  const auto most = [&](int residents) {
    return Optimum(kModel, residents, SlotDivision::kEqualPerLayer, traces).hits;
  };
  EXPECT_EQ(hits(5 * layers - 1), hits(5 * layers));
  EXPECT_EQ(hits(5 * layers + 1), hits(5 * layers));
  EXPECT_NE(hits(6 * layers), hits(5 * layers));
  EXPECT_EQ(most(5 * layers - 1), most(5 * layers));
  EXPECT_NE(most(6 * layers), most(5 * layers));
}

TEST(SimulationTest, RefusesUnknownPoliciesAndEmptyBudgets) {
  EXPECT_EQ(Simulate(kModel, {.policy = "clock", .residents = 12}, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Simulate(kModel, {.residents = 0}, {}).status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace moed::cache
