// Collects the samples of one Prometheus family; every sample carries model_name.
#pragma once

#include <prometheus/metric_family.h>

#include <string>
#include <vector>

#include "server/histogram.h"
#include "server/metric_families.h"
#include "server/served_model.h"

namespace moed::server {

using Labels = std::vector<prometheus::ClientMetric::Label>;

class FamilyBuilder {
 public:
  // `model` must outlive the builder.
  FamilyBuilder(const ServedModel& model, const char* name, const char* help,
                prometheus::MetricType type);

  // For counters and gauges.
  FamilyBuilder& Add(double value, Labels labels = {});
  // For histograms.
  FamilyBuilder& Add(const Histogram& histogram);

  // A family without samples is left out.
  void AppendTo(MetricFamilies* families);

 private:
  prometheus::ClientMetric& NewSample(Labels labels);

  const std::string& model_name_;
  prometheus::MetricFamily family_;
};

FamilyBuilder Counter(const ServedModel& model, const char* name, const char* help);
FamilyBuilder Gauge(const ServedModel& model, const char* name, const char* help);

}  // namespace moed::server
