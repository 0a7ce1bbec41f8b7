#include "server/metrics_listener.h"

#include <netdb.h>
#include <prometheus/text_serializer.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <string_view>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/listen_address.h"
#include "server/status_json.h"
#include "server/status_page.h"

namespace moed::server {
namespace {

// Enough for a scraper's headers, little enough for a stranger's.
constexpr char kMaxHeaderBytes[] = "8192";
// The page is whole in itself: nothing from elsewhere may run or be fetched in it.
constexpr char kPageHeaders[] =
    "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; script-src "
    "'unsafe-inline'; connect-src 'self'\r\n";

int Send(mg_connection* connection, const char* type, std::string_view body,
         const char* headers = "") {
  mg_printf(connection,
            "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %zu\r\nCache-Control: "
            "no-store\r\n%s\r\n",
            type, body.size(), headers);
  mg_write(connection, body.data(), body.size());
  return 200;
}

int SendFamilies(mg_connection* connection, const prometheus::Collectable& collector) {
  return Send(connection, "text/plain; version=0.0.4; charset=utf-8",
              prometheus::TextSerializer().Serialize(collector.Collect()));
}

const MetricsListener& Self(void* self) { return *static_cast<const MetricsListener*>(self); }

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
  const char* options[] = {"listening_ports",
                           address.c_str(),
                           "num_threads",
                           "4",
                           "max_request_size",
                           kMaxHeaderBytes,
                           "request_timeout_ms",
                           "10000",
                           "enable_keep_alive",
                           "no",
                           nullptr};
  std::unique_ptr<MetricsListener> listener(new MetricsListener(host, slot));
  mg_init_library(0);
  listener->context_ = mg_start(nullptr, nullptr, options);
  mg_server_port bound = {};
  if (listener->context_ == nullptr || mg_get_server_ports(listener->context_, 1, &bound) < 1) {
    return absl::UnavailableError(
        absl::StrCat("cannot serve metrics on ", address,
                     "; is the port in use? choose another with --metrics-port"));
  }
  listener->port_ = bound.port;
  mg_context* const context = listener->context_;
  mg_set_request_handler(context, "/$", &ServePage, listener.get());
  mg_set_request_handler(context, "/status.json$", &ServeStatus, listener.get());
  mg_set_request_handler(context, "/metrics$", &ServeMetrics, listener.get());
  mg_set_request_handler(context, "/metrics/experts$", &ServeExpertMetrics, listener.get());
  return listener;
}

MetricsListener::MetricsListener(const std::string& host, const ModelSlot* slot)
    : host_(host), slot_(*slot), start_(absl::Now()), serving_(slot), experts_(slot) {}

MetricsListener::~MetricsListener() {
  if (context_ != nullptr) {
    std::atomic<bool> stopped = false;
    std::thread stopper([&] {
      mg_stop(context_);
      stopped = true;
    });
    while (!stopped) {
      Knock(host_, port_);
      absl::SleepFor(absl::Milliseconds(5));
    }
    stopper.join();
  }
  mg_exit_library();
}

int MetricsListener::ServePage(mg_connection* connection, void* /*self*/) {
  return Send(connection, "text/html; charset=utf-8", kStatusPage, kPageHeaders);
}

int MetricsListener::ServeStatus(mg_connection* connection, void* self) {
  const Serving* serving = Self(self).slot_.get();
  const double uptime = absl::ToDoubleSeconds(absl::Now() - Self(self).start_);
  return Send(connection, "application/json",
              StatusJson(serving == nullptr ? nullptr : serving->model.get(), uptime));
}

int MetricsListener::ServeMetrics(mg_connection* connection, void* self) {
  return SendFamilies(connection, Self(self).serving_);
}

int MetricsListener::ServeExpertMetrics(mg_connection* connection, void* self) {
  return SendFamilies(connection, Self(self).experts_);
}

}  // namespace moed::server
