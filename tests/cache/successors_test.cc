#include "cache/successors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace moed::cache {
namespace {

std::vector<ExpertLoad> Uses(const std::vector<int>& experts) {
  std::vector<ExpertLoad> loads;
  for (int expert : experts) loads.push_back({expert, 1, 1});
  return loads;
}

TEST(SuccessorsTest, KnowsWhatFollowedBefore) {
  Successors successors{ExpertIndex(std::vector<int>{8})};
  for (int step = 0; step < 100; ++step) {
    successors.ObserveLayer(0, Uses({step % 2 == 0 ? 1 : 2}));
  }
  // The last was 2: after it always came 1.
  EXPECT_GT(successors.NextUse({0, 1}), 0.9);
  EXPECT_EQ(successors.NextUse({0, 2}), 0);
  EXPECT_EQ(successors.NextUse({0, 5}), 0);
}

TEST(SuccessorsTest, BelievesFewObservationsLess) {
  Successors successors{ExpertIndex(std::vector<int>{8})};
  successors.ObserveLayer(0, Uses({1}));
  EXPECT_EQ(successors.NextUse({0, 2}), 0);
  successors.ObserveLayer(0, Uses({2}));
  successors.ObserveLayer(0, Uses({1}));
  EXPECT_GT(successors.NextUse({0, 2}), 0.1);
  EXPECT_LT(successors.NextUse({0, 2}), 0.5);
}

// What an expert is followed by, as shares that fade with each of its uses; long enough that the
// stored sums are scaled back several times.
TEST(SuccessorsTest, AgreesWithEagerFadingOverManySteps) {
  Successors successors{ExpertIndex(std::vector<int>{4})};
  std::mt19937 random(5);
  double uses = 0;
  std::vector<double> share(4, 0);
  for (int round = 0; round < 50000; ++round) {
    successors.ObserveLayer(0, Uses({0}));
    for (int expert = 1; expert < 4; ++expert) {
      ASSERT_NEAR(successors.NextUse({0, expert}), share[expert] * uses / (uses + 4), 1e-3)
          << "round " << round << " expert " << expert;
    }
    // Rarely what it was before.
    const int next = 1 + static_cast<int>(random() % 16 == 0 ? random() % 3 : round / 3000 % 3);
    uses = std::min(uses + 1, 1000.0);
    for (double& of_expert : share) of_expert *= 1 - 1 / uses;
    share[next] += 1 / uses;
    successors.ObserveLayer(0, Uses({next}));
  }
}

TEST(SuccessorsTest, LayersAreApart) {
  Successors successors{ExpertIndex(std::vector<int>{4, 4})};
  for (int step = 0; step < 10; ++step) {
    successors.ObserveLayer(0, Uses({step % 2}));
    successors.ObserveLayer(1, Uses({3}));
  }
  EXPECT_GT(successors.NextUse({1, 3}), 0.5);
  EXPECT_EQ(successors.NextUse({1, 0}), 0);
}

TEST(SuccessorsTest, AStepOfManySequencesSaysNothing) {
  Successors successors{ExpertIndex(std::vector<int>{64})};
  for (int step = 0; step < 50; ++step) successors.ObserveLayer(0, Uses({step % 2}));
  std::vector<int> many;
  for (int expert = 0; expert <= static_cast<int>(Successors::kMaxExperts); ++expert) {
    many.push_back(expert);
  }
  successors.ObserveLayer(0, Uses(many));
  for (int expert = 0; expert < 64; ++expert) EXPECT_EQ(successors.NextUse({0, expert}), 0);
  // Nor does what comes after it.
  successors.ObserveLayer(0, Uses({9}));
  EXPECT_EQ(successors.NextUse({0, 9}), 0);
}

TEST(SuccessorsTest, ModelsTooLargeForItsMemoryDoWithout) {
  Successors successors{ExpertIndex(std::vector<int>(64, 512))};
  for (int step = 0; step < 4; ++step) successors.ObserveLayer(0, Uses({1}));
  EXPECT_EQ(successors.NextUse({0, 1}), 0);
}

}  // namespace
}  // namespace moed::cache
