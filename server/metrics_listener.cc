#include "server/metrics_listener.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <exception>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/listen_address.h"

namespace moed::server {
namespace {

// Enough for a scraper's headers, little enough for a stranger's.
constexpr char kMaxHeaderBytes[] = "8192";

// Connects and leaves, so that a thread that waits in accept looks around.
void Knock(const std::string& host, int port) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), absl::StrCat(port).c_str(), &hints, &found) != 0) return;
  const int socket_fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (socket_fd >= 0) {
    connect(socket_fd, found->ai_addr, found->ai_addrlen);
    close(socket_fd);
  }
  freeaddrinfo(found);
}

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsListener>> MetricsListener::Start(const std::string& host,
                                                                        int port,
                                                                        const ModelSlot* slot) {
  const std::string address = ListenAddress(host, port);
  try {
    auto exposer = std::make_unique<prometheus::Exposer>(
        std::vector<std::string>{"listening_ports", address, "num_threads", "2", "max_request_size",
                                 kMaxHeaderBytes, "request_timeout_ms", "10000"});
    return std::unique_ptr<MetricsListener>(new MetricsListener(host, std::move(exposer), slot));
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat("cannot serve metrics on ", address, ": ",
                                               error.what(),
                                               "; is the port in use? choose another with "
                                               "--metrics-port"));
  }
}

MetricsListener::MetricsListener(const std::string& host,
                                 std::unique_ptr<prometheus::Exposer> exposer,
                                 const ModelSlot* slot)
    : host_(host),
      serving_(std::make_shared<ServingCollector>(slot)),
      experts_(std::make_shared<ExpertCollector>(slot)),
      exposer_(std::move(exposer)) {
  exposer_->RegisterCollectable(serving_, "/metrics");
  exposer_->RegisterCollectable(experts_, "/metrics/experts");
}

MetricsListener::~MetricsListener() {
  const int port = this->port();
  std::atomic<bool> stopped = false;
  std::thread stopper([&] {
    exposer_.reset();
    stopped = true;
  });
  while (!stopped) {
    Knock(host_, port);
    absl::SleepFor(absl::Milliseconds(5));
  }
  stopper.join();
}

}  // namespace moed::server
