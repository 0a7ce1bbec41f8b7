#include "runtime/backend/cpu/bf12_window.h"

#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tests/runtime/backend/cpu/cpu_target_test.h"

namespace moed::backend {
namespace {

std::vector<uint16_t> NaiveEscapes(const std::vector<BFloat16>& row, int base) {
  std::vector<uint16_t> places;
  for (size_t i = 0; i < row.size(); ++i) {
    const int distance = (row[i] >> 7 & 0xff) - base;
    if (distance < 0 || distance >= 16) places.push_back(static_cast<uint16_t>(i));
  }
  return places;
}

int NaiveBase(const std::vector<BFloat16>& row) {
  int best = 0;
  size_t fewest = row.size();
  for (int base = 0; base <= kBf12MaxBase; ++base) {
    const size_t outside = NaiveEscapes(row, base).size();
    if (outside > fewest) continue;
    fewest = outside;
    best = base;
  }
  return best;
}

class Bf12WindowTest : public CpuTargetTest {
 protected:
  void ExpectNaiveWindow(const std::vector<BFloat16>& row) {
    const uint8_t base = ChooseBf12Base(row.data(), static_cast<int64_t>(row.size()));
    ASSERT_EQ(base, NaiveBase(row));
    std::vector<uint16_t> places(row.size() + kBf12PlacesBeyond);
    places.resize(
        FindBf12Escapes(row.data(), static_cast<int64_t>(row.size()), base, places.data()));
    ASSERT_EQ(places, NaiveEscapes(row, base));
  }

  // Exponents from `first` on, the nearer ones to `last` far more often, of both signs.
  std::vector<BFloat16> Row(size_t count, int first, int last) {
    std::geometric_distribution<int> below(0.4);
    std::vector<BFloat16> row(count);
    for (BFloat16& value : row) {
      const int exponent = std::max(last - below(random_), first);
      value = static_cast<BFloat16>((random_() & 0x807f) | exponent << 7);
    }
    return row;
  }

  std::mt19937 random_{1};
};
MOED_INSTANTIATE_CPU_TARGETS(Bf12WindowTest);

TEST_P(Bf12WindowTest, IsTheBestOfAllForEveryLargestExponent) {
  for (int last = 0; last < 256; ++last) {
    for (const size_t count : {1, 31, 64, 257}) {
      SCOPED_TRACE(testing::Message() << count << " values up to exponent " << last);
      ExpectNaiveWindow(Row(count, 0, last));
      ExpectNaiveWindow(Row(count, std::max(last - 5, 0), last));
      if (HasFatalFailure()) return;
    }
  }
}

// Where a lower window may be better: a few values far above the others.
TEST_P(Bf12WindowTest, IsTheBestOfAllBesideOutliers) {
  for (int outliers = 1; outliers < 40; ++outliers) {
    std::vector<BFloat16> row = Row(300, 90, 110);
    for (int i = 0; i < outliers; ++i) {
      row[random_() % row.size()] = static_cast<BFloat16>((random_() % 8 + 118) << 7);
    }
    SCOPED_TRACE(testing::Message() << outliers << " outliers");
    ExpectNaiveWindow(row);
    if (HasFatalFailure()) return;
  }
}

TEST_P(Bf12WindowTest, OfEqualWindowsTheHighestIsChosen) {
  EXPECT_EQ(ChooseBf12Base(std::vector<BFloat16>(128, 120 << 7).data(), 128), 120);
  EXPECT_EQ(ChooseBf12Base(std::vector<BFloat16>(128, 0x7fff).data(), 128), kBf12MaxBase);
  // As many 40 below as there are on top: either window lacks half of them.
  std::vector<BFloat16> halves(128, 120 << 7);
  std::fill_n(halves.begin(), 64, 80 << 7);
  EXPECT_EQ(ChooseBf12Base(halves.data(), 128), 120);
  halves.front() = halves.back() = 80 << 7;
  EXPECT_EQ(ChooseBf12Base(halves.data(), 128), 80);
}

}  // namespace
}  // namespace moed::backend
