#include "server/startup_memory.h"

#include <algorithm>
#include <vector>

#include "gtest/gtest.h"

namespace moed::server {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

// A machine whose available memory is read from a list, the last of which lasts.
struct Machine {
  std::vector<int64_t> readings;
  size_t next = 0;
  absl::Duration slept = absl::ZeroDuration();

  int64_t Await(int64_t wanted_bytes) {
    return AwaitStartupMemory({.wanted_bytes = wanted_bytes,
                               .available_bytes =
                                   [this] {
                                     const size_t reading = std::min(next, readings.size() - 1);
                                     ++next;
                                     return readings[reading];
                                   },
                               .sleep = [this](absl::Duration time) { slept += time; }});
  }
};

TEST(StartupMemoryTest, DoesNotWaitWhereEnoughIsAvailable) {
  Machine machine = {.readings = {8 * kGiB}};
  EXPECT_EQ(machine.Await(8 * kGiB), 8 * kGiB);
  EXPECT_EQ(machine.slept, absl::ZeroDuration());
}

TEST(StartupMemoryTest, WaitsUntilWhatIsWantedIsThere) {
  Machine machine = {.readings = {0, kGiB, 2 * kGiB, 3 * kGiB, 4 * kGiB, 5 * kGiB}};
  EXPECT_EQ(machine.Await(4 * kGiB), 4 * kGiB);
  EXPECT_EQ(machine.slept, absl::Milliseconds(400));
}

TEST(StartupMemoryTest, TakesWhatThereIsOnceItHasStoodStill) {
  Machine machine = {.readings = {kGiB, 2 * kGiB}};
  EXPECT_EQ(machine.Await(4 * kGiB), 2 * kGiB);
  EXPECT_EQ(machine.slept, absl::Milliseconds(5100));
}

TEST(StartupMemoryTest, EndsTheWaitForMemoryThatOnlyTrickles) {
  Machine machine;
  for (int64_t reading = 0; reading < 1000; ++reading) {
    machine.readings.push_back(reading * (kGiB / 8));
  }
  EXPECT_EQ(machine.Await(1000 * kGiB), 600 * (kGiB / 8));
  EXPECT_EQ(machine.slept, absl::Seconds(60));
}

TEST(StartupMemoryTest, SmallMovementsAreNoGrowth) {
  Machine machine;
  for (int64_t reading = 0; reading < 1000; ++reading) {
    machine.readings.push_back(kGiB + reading % 7 * 1000);
  }
  machine.Await(4 * kGiB);
  EXPECT_EQ(machine.slept, absl::Seconds(5));
}

}  // namespace
}  // namespace moed::server
