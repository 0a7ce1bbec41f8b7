#include "server/family_builder.h"

#include <cstdint>
#include <limits>
#include <utility>

namespace moed::server {

using prometheus::ClientMetric;
using prometheus::MetricType;

FamilyBuilder::FamilyBuilder(const ServedModel& model, const char* name, const char* help,
                             MetricType type)
    : model_name_(model.name) {
  family_.name = name;
  family_.help = help;
  family_.type = type;
}

FamilyBuilder& FamilyBuilder::Add(double value, Labels labels) {
  ClientMetric& metric = NewSample(std::move(labels));
  (family_.type == MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
  return *this;
}

FamilyBuilder& FamilyBuilder::Add(const Histogram& histogram) {
  const Histogram::Snapshot snapshot = histogram.Read();
  ClientMetric::Histogram& out = NewSample({}).histogram;
  uint64_t cumulative = 0;
  for (size_t i = 0; i < histogram.upper_bounds().size(); ++i) {
    cumulative += snapshot.bucket_counts[i];
    out.bucket.push_back({cumulative, histogram.upper_bounds()[i]});
  }
  cumulative += snapshot.bucket_counts.back();
  out.bucket.push_back({cumulative, std::numeric_limits<double>::infinity()});
  out.sample_count = cumulative;
  out.sample_sum = snapshot.sum;
  return *this;
}

void FamilyBuilder::AppendTo(MetricFamilies* families) {
  if (!family_.metric.empty()) families->push_back(std::move(family_));
}

ClientMetric& FamilyBuilder::NewSample(Labels labels) {
  ClientMetric& metric = family_.metric.emplace_back();
  metric.label = std::move(labels);
  metric.label.push_back({"model_name", model_name_});
  return metric;
}

FamilyBuilder Counter(const ServedModel& model, const char* name, const char* help) {
  return {model, name, help, MetricType::Counter};
}

FamilyBuilder Gauge(const ServedModel& model, const char* name, const char* help) {
  return {model, name, help, MetricType::Gauge};
}

}  // namespace moed::server
