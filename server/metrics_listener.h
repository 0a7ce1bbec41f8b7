// The HTTP listener that Prometheus scrapes, /metrics and /metrics/experts, with a status page for
// people at / (it reads /status.json). In plain text and open to all unless its options say
// otherwise; what holds, holds for every path.
#pragma once

#include <civetweb.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/basic_auth.h"
#include "server/metrics_collector.h"
#include "server/rotating_certificate.h"

namespace moed::server {

struct MetricsListenerOptions {
  std::string host;
  int port = 0;  // 0: any free one
  TlsFiles tls;
  absl::Duration tls_reload_interval = absl::Minutes(1);
  const BasicAuth* users = nullptr;  // null: everybody; outlives the listener
};

class MetricsListener {
 public:
  // UNAVAILABLE, naming the address, if it cannot listen there; FAILED_PRECONDITION if it cannot
  // speak TLS with what is given.
  static absl::StatusOr<std::unique_ptr<MetricsListener>> Start(
      const MetricsListenerOptions& options, const ModelSlot* slot);
  // Ends at once; civetweb alone would look up from its accept only every two seconds.
  ~MetricsListener();

  int port() const { return port_; }

 private:
  MetricsListener(const MetricsListenerOptions& options, const ModelSlot* slot);
  absl::Status Listen();

  // Callbacks of civetweb's threads; `self` is the listener.
  static int InitializeTls(void* context, void* self);
  // Of every request first: refuses it, or lets the handler of its path serve it.
  static int Admit(mg_connection* connection);
  static int ServePage(mg_connection* connection, void* self);
  static int ServeStatus(mg_connection* connection, void* self);
  static int ServeMetrics(mg_connection* connection, void* self);
  static int ServeExpertMetrics(mg_connection* connection, void* self);

  const MetricsListenerOptions options_;
  const ModelSlot& slot_;
  const absl::Time start_;
  const ServingCollector serving_;
  const ExpertCollector experts_;
  std::unique_ptr<RotatingCertificate> certificate_;  // null: plain text
  mg_context* context_ = nullptr;
  int port_ = 0;
};

}  // namespace moed::server
