// Counts of observations by fixed buckets, for latency and length distributions. Observe may be
// called from any thread at once and takes no lock; a snapshot read meanwhile may lag by an
// observation.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

namespace moed::server {

class Histogram {
 public:
  // `upper_bounds` rise strictly; a last bucket without bound is implied.
  explicit Histogram(std::span<const double> upper_bounds);

  // `value`, `count` times.
  void Observe(double value, int64_t count = 1);

  struct Snapshot {
    std::vector<int64_t> bucket_counts;  // [bounds + 1], not cumulative
    double sum = 0;
  };
  Snapshot Read() const;
  const std::vector<double>& upper_bounds() const { return upper_bounds_; }

 private:
  std::vector<double> upper_bounds_;
  std::vector<std::atomic<int64_t>> counts_;
  std::atomic<double> sum_ = 0;
};

}  // namespace moed::server
