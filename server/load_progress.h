// Tells how far loading a checkpoint is: a bar on a terminal, else a log line now and then. Used by
// the loading thread alone.
#pragma once

#include <cstdint>
#include <string>

#include "absl/time/time.h"

namespace moed::server {

class LoadProgressDisplay {
 public:
  explicit LoadProgressDisplay(std::string model);
  // Ends the bar's line.
  ~LoadProgressDisplay();

  void Update(int64_t bytes_done, int64_t bytes_total);

 private:
  const std::string model_;
  const bool terminal_;
  const absl::Time start_;
  absl::Time last_shown_;
  bool drawn_ = false;
};

// "12.3 of 61.1 GB (20 %), 1.42 GB/s, 34 s left".
std::string DescribeProgress(int64_t bytes_done, int64_t bytes_total, absl::Duration elapsed);

}  // namespace moed::server
