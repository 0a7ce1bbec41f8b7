// One line of log every ten seconds while there is work: what an operator reads first. Used by the
// server's own thread.
#pragma once

#include "absl/time/time.h"
#include "runtime/engine/engine.h"

namespace moed::server {

class ActivityLog {
 public:
  void Update(const engine::EngineSnapshot& snapshot, absl::Time now);

 private:
  engine::EngineSnapshot last_;
  absl::Time last_time_ = absl::InfinitePast();
};

}  // namespace moed::server
