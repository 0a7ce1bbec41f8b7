#include "server/histogram.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

namespace moed::server {
namespace {

using testing::ElementsAre;

TEST(HistogramTest, CountsAValueInTheFirstBucketThatHoldsIt) {
  const double bounds[] = {1, 2, 5};
  Histogram histogram(bounds);
  for (double value : {0.0, 1.0, 1.5, 5.0, 5.1, 1e9}) histogram.Observe(value);
  EXPECT_THAT(histogram.Read().bucket_counts, ElementsAre(2, 1, 1, 2));
}

TEST(HistogramTest, ObservesManyAtOnce) {
  const double bounds[] = {1};
  Histogram histogram(bounds);
  histogram.Observe(0.5, 4);
  EXPECT_THAT(histogram.Read().bucket_counts, ElementsAre(4, 0));
  EXPECT_DOUBLE_EQ(histogram.Read().sum, 2.0);
}

TEST(HistogramTest, LosesNothingBetweenThreads) {
  const double bounds[] = {10};
  Histogram histogram(bounds);
  const auto observe = [&] {
    for (int i = 0; i < 10000; ++i) histogram.Observe(1);
  };
  std::thread other(observe);
  observe();
  other.join();
  EXPECT_THAT(histogram.Read().bucket_counts, ElementsAre(20000, 0));
  EXPECT_DOUBLE_EQ(histogram.Read().sum, 20000);
}

}  // namespace
}  // namespace moed::server
