#include "runtime/backend/cold_division.h"

#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moed::backend {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr uint32_t kHalf = kAllOverLink / 2;
constexpr uint32_t kThird = kAllOverLink / 3;

TEST(ColdDivisionTest, SharesExpertsOutWholeAndCutsTheOneInBetween) {
  const std::vector<ColdExpert> four = {{1}, {1}, {1}, {1}};
  EXPECT_THAT(DivideColdExperts(four, 96, 0), ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(DivideColdExperts(four, 96, kHalf), ElementsAre(96, 96, 0, 0));
  EXPECT_THAT(DivideColdExperts(four, 96, kThird), ElementsAre(96, 32, 0, 0));
  EXPECT_THAT(DivideColdExperts(four, 96, kAllOverLink), ElementsAre(96, 96, 96, 96));
  const std::vector<ColdExpert> one = {{1}};
  EXPECT_THAT(DivideColdExperts(one, 96, kThird), ElementsAre(32));
  EXPECT_THAT(DivideColdExperts(one, 1, kHalf), ElementsAre(1));
  EXPECT_THAT(DivideColdExperts(one, 1, kThird), ElementsAre(0));
  EXPECT_THAT(DivideColdExperts({}, 96, kHalf), IsEmpty());
}

TEST(ColdDivisionTest, TheLinkTakesTheExpertsOfTheMostTokens) {
  const std::vector<ColdExpert> four = {{2}, {7}, {1}, {7}};
  EXPECT_THAT(DivideColdExperts(four, 96, kHalf), ElementsAre(0, 96, 0, 96));
  EXPECT_THAT(DivideColdExperts(four, 96, kHalf / 2), ElementsAre(0, 96, 0, 0));
  EXPECT_THAT(DivideColdExperts(four, 96, kThird), ElementsAre(0, 96, 0, 32));
  const std::vector<ColdExpert> first_fills = {{1, /*fills=*/true}, {3}, {9}, {2}};
  EXPECT_THAT(DivideColdExperts(first_fills, 96, kHalf), ElementsAre(96, 0, 96, 0));
}

TEST(ColdDivisionTest, WhatFillsASlotGoesOverTheLinkFirstAndIsNeverCut) {
  const std::vector<ColdExpert> last_fills = {{1}, {1}, {1}, {1, /*fills=*/true}};
  EXPECT_THAT(DivideColdExperts(last_fills, 96, kThird), ElementsAre(32, 0, 0, 96));
  EXPECT_THAT(DivideColdExperts(last_fills, 96, kHalf), ElementsAre(96, 0, 0, 96));
  EXPECT_THAT(DivideColdExperts(last_fills, 96, 0), ElementsAre(0, 0, 0, 96));
  const std::vector<ColdExpert> more_fill = {{1, true}, {1}, {1, true}, {1, true}};
  EXPECT_THAT(DivideColdExperts(more_fill, 96, kThird), ElementsAre(96, 0, 96, 96));
}

TEST(ColdDivisionTest, AFillWaitsUntilTheLinkHasRoomOrWhatItsReadsCostPaysForIt) {
  // Of three experts of 96 the link gets 96: one may fill, a second may not.
  EXPECT_TRUE(FillFits(kThird + 1, 3 * 96, 0, 96, 0));
  EXPECT_FALSE(FillFits(kThird + 1, 3 * 96, 96, 96, 0));
  // Of two it gets 64, so that one is 32 over it: a read costs the link 32 of its own.
  EXPECT_FALSE(FillFits(kThird + 1, 2 * 96, 0, 96, 0));
  EXPECT_TRUE(FillFits(kThird + 1, 2 * 96, 0, 96, 1));
  // Alone it is 64 over.
  EXPECT_FALSE(FillFits(kThird + 1, 96, 0, 96, 1));
  EXPECT_TRUE(FillFits(kThird + 1, 96, 0, 96, 2));
  // Nothing waits where the link does nothing else, or all.
  EXPECT_TRUE(FillFits(0, 96, 0, 96, 0));
  EXPECT_TRUE(FillFits(kAllOverLink, 96, 0, 96, 0));
}

TEST(ColdDivisionTest, MoreTokensThanAPassServesCountSeveralTimes) {
  EXPECT_EQ(ColdPasses(1), 1);
  EXPECT_EQ(ColdPasses(32), 1);
  EXPECT_EQ(ColdPasses(33), 2);
  EXPECT_EQ(ColdCost(96, 65), 3 * 96);
  // Of 400 passes over tiles the link gets 200: the first expert's 3 x 50, and the third's 2 x 25.
  const std::vector<ColdExpert> experts = {{65}, {33}, {64}, {3}};
  EXPECT_THAT(DivideColdExperts(experts, 50, kHalf), ElementsAre(50, 0, 25, 0));
}

TEST(ColdDivisionTest, CutsAtMostOneExpertAndHitsTheShareWithinATile) {
  std::mt19937 random(5);
  for (int round = 0; round < 2000; ++round) {
    const int tiles = 1 + static_cast<int>(random() % 200);
    std::vector<ColdExpert> experts(1 + random() % 40);
    int most_passes = 0;
    for (ColdExpert& expert : experts) {
      expert = {.tokens = 1 + static_cast<int>(random() % 280), .fills = random() % 4 == 0};
      most_passes = std::max(most_passes, ColdPasses(expert.tokens));
    }
    const auto share = static_cast<uint32_t>(random() % (kAllOverLink + 1));
    const std::vector<int> link = DivideColdExperts(experts, tiles, share);
    int cut = 0;
    int64_t total = 0, filling = 0, over_link = 0;
    for (size_t i = 0; i < experts.size(); ++i) {
      ASSERT_GE(link[i], 0);
      ASSERT_LE(link[i], tiles);
      cut += link[i] > 0 && link[i] < tiles ? 1 : 0;
      ASSERT_TRUE(!experts[i].fills || link[i] == tiles);
      total += ColdCost(tiles, experts[i].tokens);
      filling += experts[i].fills ? ColdCost(tiles, experts[i].tokens) : 0;
      over_link += ColdCost(link[i], experts[i].tokens);
    }
    ASSERT_LE(cut, 1);
    const double wanted = static_cast<double>(total) * share / kAllOverLink;
    ASSERT_NEAR(static_cast<double>(over_link), std::max(wanted, static_cast<double>(filling)),
                most_passes);
  }
}

}  // namespace
}  // namespace moed::backend
