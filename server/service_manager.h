// Tells systemd, if it started this process, how the daemon does: READY=1, STOPPING=1 and the
// watchdog's heartbeat (sd_notify(3), without its library). Main thread only.
#pragma once

#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace moed::server {

class ServiceManager {
 public:
  // From NOTIFY_SOCKET and WATCHDOG_USEC.
  static ServiceManager FromEnvironment();
  ServiceManager(std::string socket_path, absl::Duration watchdog)
      : socket_path_(std::move(socket_path)), watchdog_(watchdog) {}

  // Call it often, with whether the engine makes progress and whether the model can be used:
  // READY=1 goes out once, heartbeats as long as `live`, at half of what the watchdog allows.
  void Update(bool live, bool ready, absl::Time now);
  void Stopping();

 private:
  void Send(absl::string_view state) const;

  std::string socket_path_;  // empty: nobody listens
  absl::Duration watchdog_;  // infinite: none
  bool told_ready_ = false;
  absl::Time last_heartbeat_ = absl::InfinitePast();
};

}  // namespace moed::server
