// How much host memory a start may plan with. What a process held that has just ended (a rollout's
// predecessor, hundreds of pinned GiB) comes back over seconds; a plan made before would be refused
// or too small for good. Used by the loading thread alone.
#pragma once

#include <cstdint>
#include <functional>

#include "absl/time/time.h"

namespace moed::server {

struct StartupMemory {
  int64_t wanted_bytes = 0;  // more is of no use to this start
  std::function<int64_t()> available_bytes;
  std::function<void(absl::Duration)> sleep;
};

// What is available as soon as that is `wanted_bytes`, or once it has not grown for 5 s, at the
// latest after 60 s; a wait is logged.
int64_t AwaitStartupMemory(const StartupMemory& memory);

}  // namespace moed::server
