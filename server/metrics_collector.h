// Prometheus collectors over snapshots: nothing is counted twice, and nothing is done between
// scrapes. Families without a sample yet (no such error so far) are left out. Any thread.
#pragma once

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <vector>

#include "server/model_slot.h"

namespace moed::server {

// /metrics: requests, batch, KV cache and per-layer expert series.
class ServingCollector final : public prometheus::Collectable {
 public:
  explicit ServingCollector(const ModelSlot* slot) : slot_(*slot) {}
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const ModelSlot& slot_;
};

// /metrics/experts: one counter for each layer and expert, for a slower scrape.
class ExpertCollector final : public prometheus::Collectable {
 public:
  explicit ExpertCollector(const ModelSlot* slot) : slot_(*slot) {}
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const ModelSlot& slot_;
};

}  // namespace moed::server
