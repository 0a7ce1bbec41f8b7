#include "runtime/model/expert_groups.h"

#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moed::model {
namespace {

using ::testing::ElementsAre;

TEST(ExpertGroupsTest, GroupsPairsByExpert) {
  ExpertGroups groups(/*num_experts=*/6, /*top_k=*/2, /*max_tokens=*/4);
  groups.Build(std::vector<int32_t>{5, 0, 0, 3, 3, 5});
  EXPECT_THAT(groups.experts(), ElementsAre(0, 3, 5));
  EXPECT_THAT(groups.rows(0), ElementsAre(1, 2));
  EXPECT_THAT(groups.rows(1), ElementsAre());
  EXPECT_THAT(groups.rows(3), ElementsAre(3, 4));
  EXPECT_THAT(groups.rows(5), ElementsAre(0, 5));
}

TEST(ExpertGroupsTest, IsRebuiltFromNothing) {
  ExpertGroups groups(4, 1, 3);
  groups.Build(std::vector<int32_t>{3, 3, 1});
  groups.Build(std::vector<int32_t>{2});
  EXPECT_THAT(groups.experts(), ElementsAre(2));
  EXPECT_THAT(groups.rows(2), ElementsAre(0));
  EXPECT_THAT(groups.rows(3), ElementsAre());
}

TEST(ExpertGroupsTest, HoldsEveryPairOnceInRisingOrder) {
  std::mt19937 random(1);
  constexpr int kExperts = 17, kTopK = 3, kTokens = 200;
  ExpertGroups groups(kExperts, kTopK, kTokens);
  for (int round = 0; round < 50; ++round) {
    std::vector<int32_t> ids(kTopK * (1 + random() % kTokens));
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % kExperts);
    groups.Build(ids);
    size_t rows_in_all = 0;
    for (int expert : groups.experts()) {
      int32_t last = -1;
      for (int32_t row : groups.rows(expert)) {
        ASSERT_EQ(ids[row], expert);
        ASSERT_GT(row, last);
        last = row;
        ++rows_in_all;
      }
    }
    ASSERT_EQ(rows_in_all, ids.size());
  }
}

}  // namespace
}  // namespace moed::model
