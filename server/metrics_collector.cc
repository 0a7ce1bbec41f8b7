#include "server/metrics_collector.h"

#include "server/metric_families.h"

namespace moed::server {

std::vector<prometheus::MetricFamily> ServingCollector::Collect() const {
  MetricFamilies families;
  const Serving* serving = slot_.get();
  if (serving == nullptr) return families;
  const ServedModel& model = *serving->model;
  const engine::EngineSnapshot snapshot = model.engine->Snapshot();
  AppendEngineFamilies(model, snapshot, &families);
  AppendRequestFamilies(model, serving->metrics, &families);
  const std::shared_ptr<const model::ExpertSnapshot> experts = model.experts();
  AppendLayerFamilies(model, experts->cache, &families);
  AppendColdFamilies(model, *experts, &families);
  AppendBalanceFamilies(model, *experts->balance, &families);
  AppendBudgetFamilies(model, *experts, &families);
  AppendGatewayFamilies(model, snapshot, &families);
  return families;
}

std::vector<prometheus::MetricFamily> ExpertCollector::Collect() const {
  MetricFamilies families;
  const Serving* serving = slot_.get();
  if (serving != nullptr) {
    AppendExpertFamilies(*serving->model, serving->model->experts()->experts, &families);
  }
  return families;
}

}  // namespace moed::server
