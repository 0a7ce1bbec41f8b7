// Builds Prometheus families, and those of each source of numbers. Pure functions of snapshots.
#pragma once

#include <prometheus/metric_family.h>

#include <string>
#include <vector>

#include "cache/cache_stats.h"
#include "cache/load_balance.h"
#include "runtime/backend/device_experts.h"
#include "runtime/engine/engine.h"
#include "server/request_metrics.h"
#include "server/served_model.h"

namespace moed::server {

using MetricFamilies = std::vector<prometheus::MetricFamily>;

// All series carry model_name.
void AppendEngineFamilies(const ServedModel& model, const engine::EngineSnapshot& snapshot,
                          MetricFamilies* families);
void AppendRequestFamilies(const ServedModel& model, const RequestMetrics& metrics,
                           MetricFamilies* families);
// By layer.
void AppendLayerFamilies(const ServedModel& model, const cache::CacheStats& stats,
                         MetricFamilies* families);
// What the CPU computes beside a GPU.
void AppendColdFamilies(const ServedModel& model, const model::ExpertSnapshot& experts,
                        MetricFamilies* families);
// By layer: how evenly the routers spread their tokens.
void AppendBalanceFamilies(const ServedModel& model,
                           const std::vector<cache::LayerBalance>& balance,
                           MetricFamilies* families);
// What a few other budgets would give.
void AppendBudgetFamilies(const ServedModel& model, const model::ExpertSnapshot& snapshot,
                          MetricFamilies* families);
// By layer and expert.
void AppendExpertFamilies(const ServedModel& model, const cache::ExpertStats& stats,
                          MetricFamilies* families);
// The gauges that inference gateways look for under vLLM's names.
void AppendGatewayFamilies(const ServedModel& model, const engine::EngineSnapshot& snapshot,
                           MetricFamilies* families);

}  // namespace moed::server
