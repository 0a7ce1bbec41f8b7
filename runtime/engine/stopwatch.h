// Splits a thread's time into laps. One thread.
#pragma once

#include <chrono>

namespace moed::engine {

class Stopwatch {
 public:
  // Seconds since the last call, or since the stopwatch was made.
  double Lap() {
    const auto now = std::chrono::steady_clock::now();
    const std::chrono::duration<double> lap = now - last_;
    last_ = now;
    return lap.count();
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace moed::engine
