#include "cache/slot_floors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace moed::cache {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

TEST(SlotFloorsTest, ScratchIsASixteenthBetweenOneAndTwiceTopK) {
  const ExpertIndex index(std::vector<int>(48, 128));
  EXPECT_EQ(ScratchSlots(index, 8, 8), 1);
  EXPECT_EQ(ScratchSlots(index, 8, 47), 2);
  EXPECT_EQ(ScratchSlots(index, 8, 3000), 16);
  EXPECT_EQ(ScratchSlots(index, 8, 48 * 128 - 1), 16);
  EXPECT_EQ(ScratchSlots(index, 8, 48 * 128), 0);
}

TEST(SlotFloorsTest, FloorIsTheLeastOfExpertsThreeTopKAndAnEqualShare) {
  const ExpertIndex large(std::vector<int>(48, 128));
  EXPECT_THAT(LayerFloors(large, 8, 3000), Each(24));
  EXPECT_THAT(LayerFloors(large, 8, 480), Each(10));
  EXPECT_THAT(LayerFloors(large, 8, 47), Each(0));
  const ExpertIndex small(std::vector<int>{8, 0, 4});
  EXPECT_THAT(LayerFloors(small, 2, 12), ElementsAre(6, 0, 4));
  EXPECT_THAT(LayerFloors(small, 2, 7), ElementsAre(3, 0, 3));
}

}  // namespace
}  // namespace moed::cache
