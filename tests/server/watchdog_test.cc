#include "server/watchdog.h"

#include <gtest/gtest.h>

namespace moed::server {
namespace {

const Watchdog::Clock::time_point kStart{std::chrono::hours(1)};

// Updates every 200 ms for so long; true if any says that it hangs.
bool Watch(Watchdog& watchdog, int64_t progress, int from_ms, int to_ms) {
  bool hangs = false;
  for (int at_ms = from_ms; at_ms <= to_ms; at_ms += 200) {
    hangs |= watchdog.Update(progress, kStart + std::chrono::milliseconds(at_ms));
  }
  return hangs;
}

TEST(WatchdogTest, BarksWhenProgressStandsStillTooLong) {
  Watchdog watchdog(absl::Seconds(5));
  EXPECT_FALSE(Watch(watchdog, 7, 0, 5000));
  EXPECT_EQ(watchdog.stalled(), absl::Seconds(5));
  EXPECT_TRUE(Watch(watchdog, 7, 5200, 5200));
}

TEST(WatchdogTest, AnyChangeIsProgress) {
  Watchdog watchdog(absl::Seconds(5));
  EXPECT_FALSE(Watch(watchdog, 7, 0, 4800));
  EXPECT_FALSE(Watch(watchdog, 6, 5000, 9800));
  EXPECT_FALSE(Watch(watchdog, 7, 10000, 14800));
}

TEST(WatchdogTest, AProcessThatWasStoppedHasNotHung) {
  Watchdog watchdog(absl::Seconds(5));
  EXPECT_FALSE(watchdog.Update(7, kStart));
  EXPECT_FALSE(watchdog.Update(7, kStart + std::chrono::hours(3)));
  EXPECT_EQ(watchdog.stalled(), absl::Seconds(1));
}

TEST(WatchdogTest, ZeroMeansNever) {
  Watchdog watchdog(absl::ZeroDuration());
  EXPECT_FALSE(Watch(watchdog, 7, 0, 1000000));
  EXPECT_GT(watchdog.stalled(), absl::Seconds(900));
}

}  // namespace
}  // namespace moed::server
