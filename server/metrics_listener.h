// The HTTP listener that Prometheus scrapes, /metrics and /metrics/experts, with a status page for
// people at / (it reads /status.json).
#pragma once

#include <civetweb.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/metrics_collector.h"

namespace moed::server {

class MetricsListener {
 public:
  // Port 0: any free one. UNAVAILABLE, naming the address, if it cannot listen there.
  static absl::StatusOr<std::unique_ptr<MetricsListener>> Start(const std::string& host, int port,
                                                                const ModelSlot* slot);
  // Ends at once; civetweb alone would look up from its accept only every two seconds.
  ~MetricsListener();

  int port() const { return port_; }

 private:
  MetricsListener(const std::string& host, const ModelSlot* slot);

  // Handlers of civetweb's threads; `self` is the listener.
  static int ServePage(mg_connection* connection, void* self);
  static int ServeStatus(mg_connection* connection, void* self);
  static int ServeMetrics(mg_connection* connection, void* self);
  static int ServeExpertMetrics(mg_connection* connection, void* self);

  const std::string host_;
  const ModelSlot& slot_;
  const absl::Time start_;
  const ServingCollector serving_;
  const ExpertCollector experts_;
  mg_context* context_ = nullptr;
  int port_ = 0;
};

}  // namespace moed::server
