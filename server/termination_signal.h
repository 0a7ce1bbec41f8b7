// SIGTERM, SIGINT and SIGHUP as something to wait for, instead of handlers. Created in main before
// any other thread, so that all threads have the signals blocked and only the waiter takes them.
#pragma once

#include "absl/time/time.h"

namespace moed::server {

enum class Signal {
  kNone,
  kStop,    // SIGTERM or SIGINT
  kReload,  // SIGHUP
};

class TerminationSignal {
 public:
  TerminationSignal();

  // The signal that comes first within `timeout`. After kStop a further SIGTERM or SIGINT ends the
  // process at once: for users who will not wait for the drain.
  Signal WaitFor(absl::Duration timeout);
};

}  // namespace moed::server
