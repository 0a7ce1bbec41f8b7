#include "runtime/model/counter_random.h"

#include <array>

#include "gtest/gtest.h"

namespace moed::model {
namespace {

// The published vectors of Random123 for philox4x32-10, their first 53 bits.
TEST(CounterRandomTest, MatchesPublishedVectors) {
  EXPECT_EQ(UniformDraw(0, 0), static_cast<double>(0x6627e8d5e169c58dull >> 11) * 0x1p-53);
}

TEST(CounterRandomTest, DependsOnSeedAndIndexAlone) {
  EXPECT_EQ(UniformDraw(7, 11), UniformDraw(7, 11));
  EXPECT_NE(UniformDraw(7, 11), UniformDraw(7, 12));
  EXPECT_NE(UniformDraw(7, 11), UniformDraw(8, 11));
  EXPECT_NE(UniformDraw(7, uint64_t{11} << 32), UniformDraw(7, 11));
  EXPECT_NE(UniformDraw(uint64_t{7} << 32, 11), UniformDraw(7, 11));
}

TEST(CounterRandomTest, IsUniformOverNeighbouringSeedsAndIndices) {
  constexpr int kDraws = 40000;
  std::array<int, 10> counts = {};
  for (int i = 0; i < kDraws; ++i) {
    const double draw = UniformDraw(i / 200, i % 200);
    ASSERT_GE(draw, 0);
    ASSERT_LT(draw, 1);
    ++counts[static_cast<int>(draw * 10)];
  }
  for (int count : counts) EXPECT_NEAR(count, kDraws / 10, 5 * 60);  // 5 standard deviations
}

}  // namespace
}  // namespace moed::model
