// SIGTERM and SIGINT as something to wait for, instead of handlers. Created in main before any
// other thread, so that all threads have the signals blocked and only the waiter takes them.
#pragma once

#include "absl/time/time.h"

namespace moed::server {

class TerminationSignal {
 public:
  TerminationSignal();

  // True as soon as one of the signals has come, false after `timeout`. From then on a further
  // signal ends the process at once: for users who will not wait for the drain.
  bool WaitFor(absl::Duration timeout);
};

}  // namespace moed::server
