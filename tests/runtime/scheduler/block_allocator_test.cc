#include "runtime/scheduler/block_allocator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

namespace moed::scheduler {
namespace {

TEST(BlockAllocatorTest, GivesOutEveryBlockOnceThenNothing) {
  BlockAllocator blocks(3);
  EXPECT_EQ(blocks.Allocate(), 0);
  EXPECT_EQ(blocks.Allocate(), 1);
  EXPECT_EQ(blocks.Allocate(), 2);
  EXPECT_EQ(blocks.Allocate(), std::nullopt);
  EXPECT_EQ(blocks.num_free(), 0);
}

TEST(BlockAllocatorTest, ReusesTheMostRecentlyFreedBlockFirst) {
  BlockAllocator blocks(4);
  for (int i = 0; i < 4; ++i) blocks.Allocate();
  blocks.Release(1);
  blocks.Release(3);
  EXPECT_EQ(blocks.Allocate(), 3);
  EXPECT_EQ(blocks.Allocate(), 1);
}

TEST(BlockAllocatorTest, FreesASharedBlockWithItsLastReference) {
  BlockAllocator blocks(1);
  const int32_t block = *blocks.Allocate();
  blocks.Share(block);
  blocks.Release(block);
  EXPECT_EQ(blocks.num_used(), 1);
  blocks.Release(block);
  EXPECT_EQ(blocks.num_used(), 0);
}

TEST(BlockAllocatorDeathTest, RefusesToReleaseABlockThatIsNotUsed) {
  BlockAllocator blocks(2);
  const int32_t block = *blocks.Allocate();
  blocks.Release(block);
  EXPECT_DEATH(blocks.Release(block), "released that nobody holds");
  EXPECT_DEATH(blocks.Release(2), "released that nobody holds");
  EXPECT_DEATH(blocks.Release(-1), "released that nobody holds");
  EXPECT_DEATH(blocks.Share(block), "shared that nobody holds");
}

TEST(BlockAllocatorTest, AgreesWithANaiveCountOverRandomOperations) {
  std::mt19937 random(7);
  BlockAllocator blocks(16);
  std::map<int32_t, int> references;
  for (int i = 0; i < 200000; ++i) {
    const int choice = std::uniform_int_distribution(0, 2)(random);
    if (choice == 0) {
      const auto block = blocks.Allocate();
      ASSERT_EQ(block.has_value(), references.size() < 16);
      if (!block) continue;
      ASSERT_TRUE(references.emplace(*block, 1).second) << "given out twice";
    } else if (!references.empty()) {
      auto held = references.begin();
      std::advance(held, std::uniform_int_distribution<size_t>(0, references.size() - 1)(random));
      if (choice == 1) {
        blocks.Share(held->first);
        ++held->second;
      } else {
        blocks.Release(held->first);
        if (--held->second == 0) references.erase(held);
      }
    }
    ASSERT_EQ(blocks.num_used(), static_cast<int>(references.size()));
  }
}

}  // namespace
}  // namespace moed::scheduler
