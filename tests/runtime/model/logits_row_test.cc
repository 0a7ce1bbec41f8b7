#include "runtime/model/logits_row.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace moed::model {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Rounded to few values, so that ties are frequent.
std::vector<float> RandomRow(size_t size, std::mt19937& random) {
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> row(size);
  for (float& value : row) value = std::round(normal(random) * 8) / 8;
  return row;
}

std::vector<ScoredToken> Sorted(const std::vector<float>& row) {
  std::vector<ScoredToken> tokens;
  for (size_t i = 0; i < row.size(); ++i) tokens.push_back({static_cast<int32_t>(i), row[i]});
  std::sort(tokens.begin(), tokens.end(), RanksBefore);
  return tokens;
}

TEST(LogitsRowTest, FindsTheMaximumAtItsLowestId) {
  std::mt19937 random(1);
  for (size_t size : {1u, 2u, 255u, 256u, 257u, 1000u, 5000u}) {
    const std::vector<float> row = RandomRow(size, random);
    const RowMaximum maximum = FindMaximum(row);
    EXPECT_TRUE(maximum.valid);
    EXPECT_EQ(maximum.id, std::max_element(row.begin(), row.end()) - row.begin()) << size;
    EXPECT_EQ(maximum.value, *std::max_element(row.begin(), row.end()));
  }
}

TEST(LogitsRowTest, RefusesNanAndInfinityWhereverTheyAre) {
  for (size_t position : {0u, 15u, 16u, 300u, 999u}) {
    for (float bad : {kNan, -kNan, kInfinity}) {
      std::vector<float> row(1000, 1.0f);
      row[position] = bad;
      EXPECT_FALSE(FindMaximum(row).valid) << position << " " << bad;
    }
  }
  std::vector<float> forbidden(300, -kInfinity);
  EXPECT_FALSE(FindMaximum(forbidden).valid);
  forbidden[299] = -5;
  EXPECT_TRUE(FindMaximum(forbidden).valid);
  EXPECT_EQ(FindMaximum(forbidden).id, 299);
}

TEST(LogitsRowTest, ExponentialsAreAccurate) {
  std::vector<float> row;
  for (float x = 0; x > -85; x -= 0.013f) row.push_back(x);
  std::vector<float> out(row.size());
  const double sum = Exponentials(row, 0, 1, out);
  double expected_sum = 0;
  for (size_t i = 0; i < row.size(); ++i) {
    const double expected = std::exp(static_cast<double>(row[i]));
    expected_sum += expected;
    EXPECT_NEAR(out[i] / expected, 1, 5e-6) << row[i];
  }
  EXPECT_NEAR(sum / expected_sum, 1, 1e-6);
  EXPECT_NEAR(SumOfExponentials(row, 0) / expected_sum, 1, 1e-6);
}

TEST(LogitsRowTest, ExponentialsOfWhatIsForbiddenAreZero) {
  const std::vector<float> row = {0, -kInfinity, -1e30f, -std::numeric_limits<float>::max()};
  std::vector<float> out(row.size());
  EXPECT_EQ(Exponentials(row, 0, 1e5f, out), 1);
  EXPECT_EQ(out, (std::vector<float>{1, 0, 0, 0}));
}

TEST(LogitsRowTest, SelectsTheHighestAsASortWould) {
  std::mt19937 random(2);
  std::vector<ScoredToken> highest;
  for (size_t size : {1u, 100u, 256u, 3000u, 20000u}) {
    for (int count : {0, 1, 2, 20, 255, 256, 1000, 50000}) {
      const std::vector<float> row = RandomRow(size, random);
      const std::vector<ScoredToken> expected = Sorted(row);
      SelectHighest(row, count, &highest);
      ASSERT_EQ(highest.size(), std::min<size_t>(count, size));
      for (size_t i = 0; i < highest.size(); ++i) ASSERT_EQ(highest[i].id, expected[i].id);
    }
  }
}

TEST(LogitsRowTest, NucleusBoundaryIsWhereASortedSumReachesTheFraction) {
  std::mt19937 random(3);
  for (size_t size : {1u, 7u, 300u, 5000u}) {
    for (double fraction : {0.01, 0.3, 0.5, 0.9, 0.999}) {
      std::vector<float> row = RandomRow(size, random);
      const float maximum = *std::max_element(row.begin(), row.end());
      const double total = Exponentials(row, maximum, 1, row);
      double sum = 0;
      ScoredToken expected;
      for (const ScoredToken& token : Sorted(row)) {
        expected = token;
        sum += token.score;
        if (sum >= fraction * total) break;
      }
      const ScoredToken boundary = NucleusBoundary(row, total, fraction);
      EXPECT_EQ(boundary.score, expected.score) << size << " " << fraction;
      // Sums of equal terms differ in their last bits, so a tie may end one id apart.
      EXPECT_NEAR(std::count_if(row.begin(), row.end(),
                                [&](float weight) { return weight > boundary.score; }),
                  std::count_if(row.begin(), row.end(),
                                [&](float weight) { return weight > expected.score; }),
                  1);
    }
  }
}

}  // namespace
}  // namespace moed::model
