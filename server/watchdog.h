// Notices an engine that hangs: a device that never completes, a compute thread that was stopped.
// Fed every so often with a number that changes as long as the engine advances; what it counts is
// the time that it watched, so that a process which was stopped, or a machine which slept, is not
// taken for a hang. One thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

#include "absl/time/time.h"

namespace moed::server {

class Watchdog {
 public:
  using Clock = std::chrono::steady_clock;

  // Zero: nothing is ever taken for a hang.
  explicit Watchdog(absl::Duration patience) : patience_(patience) {}

  // True once `progress` has stood still for longer than the patience.
  bool Update(int64_t progress, Clock::time_point now);

  // For how long it has.
  absl::Duration stalled() const { return stalled_; }

 private:
  const absl::Duration patience_;
  std::optional<int64_t> progress_;
  Clock::time_point last_update_;
  absl::Duration stalled_;
};

}  // namespace moed::server
