#include "cache/token_successors.h"

#include <gtest/gtest.h>

#include <vector>

namespace moed::cache {
namespace {

constexpr int64_t kBytes = 8'000'000;
const std::vector<int> kTwoLayers = {0, 16, 16};

std::vector<ExpertLoad> Uses(const std::vector<int>& experts) {
  std::vector<ExpertLoad> loads;
  for (int expert : experts) loads.push_back({expert, 1, 1});
  return loads;
}

// One token, known by the experts of the first MoE layer.
void Step(TokenSuccessors& tokens, const std::vector<int>& first, const std::vector<int>& second) {
  tokens.BeginStep();
  tokens.ObserveLayer(1, Uses(first));
  tokens.ObserveLayer(2, Uses(second));
}

TEST(TokenSuccessorsTest, KnowsWhatFollowedAToken) {
  TokenSuccessors tokens{ExpertIndex(kTwoLayers), 2, kBytes};
  for (int round = 0; round < 50; ++round) {
    Step(tokens, {0, 1}, {8, 9});
    Step(tokens, {2, 3}, {10, 11});
    Step(tokens, {1, 2}, {8, 9});  // shares its experts with both
    Step(tokens, {4, 5}, {12, 13});
  }
  Step(tokens, {1, 0}, {8, 9});
  EXPECT_GT(tokens.Belief(2), 0.9);
  EXPECT_GT(tokens.NextUse({2, 10}), 0.98);
  EXPECT_EQ(tokens.NextUse({2, 12}), 0);
  EXPECT_GT(tokens.NextUse({1, 2}), 0.98);
  EXPECT_EQ(tokens.NextUse({1, 4}), 0);
}

TEST(TokenSuccessorsTest, KeepsShares) {
  TokenSuccessors tokens{ExpertIndex(kTwoLayers), 2, kBytes};
  for (int round = 0; round < 100; ++round) {
    Step(tokens, {0, 1}, {8, 9});
    Step(tokens, {2, 3}, round % 4 == 0 ? std::vector<int>{10, 11} : std::vector<int>{12, 13});
  }
  Step(tokens, {0, 1}, {8, 9});
  EXPECT_NEAR(tokens.NextUse({2, 10}), 0.25, 0.02);
  EXPECT_NEAR(tokens.NextUse({2, 12}), 0.75, 0.02);
}

TEST(TokenSuccessorsTest, ATokenMayFollowItself) {
  TokenSuccessors tokens{ExpertIndex(kTwoLayers), 2, kBytes};
  Step(tokens, {0, 1}, {8, 9});
  EXPECT_EQ(tokens.Belief(2), 0);
  Step(tokens, {0, 1}, {8, 9});
  EXPECT_GT(tokens.Belief(2), 0);
  EXPECT_EQ(tokens.NextUse({2, 8}), 1);
}

TEST(TokenSuccessorsTest, StepsOfManyTokensSayNothing) {
  TokenSuccessors tokens{ExpertIndex(kTwoLayers), 2, kBytes};
  for (int round = 0; round < 10; ++round) {
    Step(tokens, {0, 1}, {8, 9});
    Step(tokens, {2, 3, 4}, {10, 11, 12});
  }
  EXPECT_EQ(tokens.Belief(2), 0);
  Step(tokens, {0, 1}, {8, 9});
  EXPECT_EQ(tokens.NextUse({2, 10}), 0);
}

TEST(TokenSuccessorsTest, TheLeastRecentContextMakesWay) {
  const ExpertIndex index(std::vector<int>{512});
  TokenSuccessors tokens{index, 2, 40'000};
  const auto step = [&](int a, int b) {
    tokens.BeginStep();
    tokens.ObserveLayer(0, Uses({a, b}));
  };
  for (int other = 0; other < 50'000; ++other) {
    step(0, 1);
    step(2 + other % 200, 210 + other / 200);  // never the same twice
  }
  step(0, 1);
  EXPECT_GT(tokens.Belief(0), 0.9);  // seen all the time: still there
  step(2, 210);
  EXPECT_EQ(tokens.Belief(0), 0);  // long gone
  EXPECT_LE(tokens.bytes(), 45'000);
}

TEST(TokenSuccessorsTest, IsOffWithoutMemory) {
  TokenSuccessors tokens{ExpertIndex(kTwoLayers), 2, 1000};
  for (int round = 0; round < 10; ++round) Step(tokens, {0, 1}, {8, 9});
  EXPECT_EQ(tokens.Belief(2), 0);
  EXPECT_EQ(tokens.NextUse({2, 8}), 0);
}

}  // namespace
}  // namespace moed::cache
