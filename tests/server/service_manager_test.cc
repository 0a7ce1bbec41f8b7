#include "server/service_manager.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>

#include "absl/time/clock.h"

namespace moed::server {
namespace {

// systemd's end of the socket.
class Listener {
 public:
  explicit Listener(const std::string& path) : fd_(socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0)) {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
    unlink(path.c_str());
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  ~Listener() { close(fd_); }

  // All that came, in order, joined by blanks.
  std::string Take() {
    std::string all;
    char buffer[256];
    for (ssize_t got; (got = recv(fd_, buffer, sizeof(buffer), 0)) > 0;) {
      all += (all.empty() ? "" : " ") + std::string(buffer, got);
    }
    return all;
  }

 private:
  const int fd_;
};

TEST(ServiceManagerTest, TellsReadyOnceAndBeatsWhileAlive) {
  const std::string path = testing::TempDir() + "/notify.sock";
  Listener systemd(path);
  ServiceManager manager(path, absl::Seconds(20));
  const absl::Time start = absl::FromUnixSeconds(1000);
  manager.Update(/*live=*/true, /*ready=*/false, start);
  EXPECT_EQ(systemd.Take(), "WATCHDOG=1");
  manager.Update(true, true, start + absl::Seconds(1));
  manager.Update(true, true, start + absl::Seconds(2));
  EXPECT_EQ(systemd.Take(), "READY=1");
  manager.Update(true, true, start + absl::Seconds(10));
  EXPECT_EQ(systemd.Take(), "WATCHDOG=1");
  manager.Update(/*live=*/false, false, start + absl::Seconds(60));
  EXPECT_EQ(systemd.Take(), "");
  manager.Stopping();
  EXPECT_EQ(systemd.Take(), "STOPPING=1");
}

TEST(ServiceManagerTest, WithoutSystemdNothingHappens) {
  ServiceManager manager("", absl::InfiniteDuration());
  manager.Update(true, true, absl::Now());
  manager.Stopping();
}

}  // namespace
}  // namespace moed::server
