#include "server/metrics_listener.h"

#include <exception>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/listen_address.h"

namespace moed::server {
namespace {

// Enough for a scraper's headers, little enough for a stranger's.
constexpr char kMaxHeaderBytes[] = "8192";

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsListener>> MetricsListener::Start(const std::string& host,
                                                                        int port,
                                                                        const ModelSlot* slot) {
  const std::string address = ListenAddress(host, port);
  try {
    auto exposer = std::make_unique<prometheus::Exposer>(
        std::vector<std::string>{"listening_ports", address, "num_threads", "2", "max_request_size",
                                 kMaxHeaderBytes, "request_timeout_ms", "10000"});
    return std::unique_ptr<MetricsListener>(new MetricsListener(std::move(exposer), slot));
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat("cannot serve metrics on ", address, ": ",
                                               error.what(),
                                               "; is the port in use? choose another with "
                                               "--metrics-port"));
  }
}

MetricsListener::MetricsListener(std::unique_ptr<prometheus::Exposer> exposer,
                                 const ModelSlot* slot)
    : serving_(std::make_shared<ServingCollector>(slot)),
      experts_(std::make_shared<ExpertCollector>(slot)),
      exposer_(std::move(exposer)) {
  exposer_->RegisterCollectable(serving_, "/metrics");
  exposer_->RegisterCollectable(experts_, "/metrics/experts");
}

}  // namespace moed::server
