#include "server/startup_memory.h"

#include <spdlog/spdlog.h>

#include <algorithm>

namespace moed::server {
namespace {

constexpr absl::Duration kBetweenReadings = absl::Milliseconds(100);
constexpr absl::Duration kLongestStandstill = absl::Seconds(5);
constexpr absl::Duration kLongestWait = absl::Seconds(60);
// A machine's other processes move what is available by some MiB all the time.
constexpr int64_t kGrowthBytes = int64_t{64} << 20;

double Gibibytes(int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

}  // namespace

int64_t AwaitStartupMemory(const StartupMemory& memory) {
  int64_t available = memory.available_bytes();
  if (available >= memory.wanted_bytes) return available;
  spdlog::info("{:.1f} GiB of host memory are available, {:.1f} GiB are of use: waiting for more",
               Gibibytes(available), Gibibytes(memory.wanted_bytes));
  int64_t counted = available;
  absl::Duration standstill;
  for (absl::Duration waited;
       waited < kLongestWait && standstill < kLongestStandstill && available < memory.wanted_bytes;
       waited += kBetweenReadings) {
    memory.sleep(kBetweenReadings);
    available = memory.available_bytes();
    const bool grew = available >= counted + kGrowthBytes;
    standstill = grew ? absl::ZeroDuration() : standstill + kBetweenReadings;
    if (grew) counted = available;
  }
  spdlog::info("planning with {:.1f} GiB of host memory", Gibibytes(available));
  return available;
}

}  // namespace moed::server
