#include "server/service_manager.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>

#include "absl/strings/numbers.h"

namespace moed::server {

ServiceManager ServiceManager::FromEnvironment() {
  const char* socket_path = std::getenv("NOTIFY_SOCKET");
  const char* watchdog = std::getenv("WATCHDOG_USEC");
  int64_t microseconds = 0;
  const bool watched = watchdog != nullptr && absl::SimpleAtoi(watchdog, &microseconds);
  return ServiceManager(socket_path != nullptr ? socket_path : "",
                        watched ? absl::Microseconds(microseconds) : absl::InfiniteDuration());
}

void ServiceManager::Update(bool live, bool ready, absl::Time now) {
  if (ready && !told_ready_) {
    told_ready_ = true;
    Send("READY=1");
  }
  if (!live || now - last_heartbeat_ < watchdog_ / 2) return;
  last_heartbeat_ = now;
  if (watchdog_ < absl::InfiniteDuration()) Send("WATCHDOG=1");
}

void ServiceManager::Stopping() { Send("STOPPING=1"); }

void ServiceManager::Send(absl::string_view state) const {
  sockaddr_un address = {};
  if (socket_path_.empty() || socket_path_.size() >= sizeof(address.sun_path)) return;
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, socket_path_.data(), socket_path_.size());
  // Linux's abstract names are written with @ for their leading zero.
  if (address.sun_path[0] == '@') address.sun_path[0] = '\0';
  const int socket_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (socket_fd < 0) return;
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + socket_path_.size());
  sendto(socket_fd, state.data(), state.size(), MSG_NOSIGNAL,
         reinterpret_cast<const sockaddr*>(&address), length);
  close(socket_fd);
}

}  // namespace moed::server
