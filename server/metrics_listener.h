// The HTTP listener that Prometheus scrapes: /metrics and /metrics/experts.
#pragma once

#include <prometheus/exposer.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/metrics_collector.h"

namespace moed::server {

class MetricsListener {
 public:
  // Port 0: any free one. UNAVAILABLE, naming the address, if it cannot listen there.
  static absl::StatusOr<std::unique_ptr<MetricsListener>> Start(const std::string& host, int port,
                                                                const ModelSlot* slot);

  // Ends at once; the exposer alone would look up from its accept only every two seconds.
  ~MetricsListener();

  int port() const { return exposer_->GetListeningPorts().front(); }

 private:
  MetricsListener(const std::string& host, std::unique_ptr<prometheus::Exposer> exposer,
                  const ModelSlot* slot);

  const std::string host_;

  // The exposer holds weak references.
  std::shared_ptr<ServingCollector> serving_;
  std::shared_ptr<ExpertCollector> experts_;
  std::unique_ptr<prometheus::Exposer> exposer_;
};

}  // namespace moed::server
