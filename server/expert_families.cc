// The families of the expert cache.
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/budget_curve.h"
#include "server/family_builder.h"
#include "server/metric_families.h"

namespace moed::server {
namespace {

using prometheus::MetricType;

constexpr const char* kPathNames[cache::kNumBytePaths] = {"disk", "link", "cpu"};

Labels LayerLabel(size_t layer) { return {{"layer", std::to_string(layer)}}; }

Labels ExpertLabels(size_t layer, size_t expert) {
  return {{"layer", std::to_string(layer)}, {"expert", std::to_string(expert)}};
}

double Bytes(const ServedModel& model, int experts) {
  return static_cast<double>(experts * model.description.expert_bytes);
}

}  // namespace

void AppendLayerFamilies(const ServedModel& model, const cache::CacheStats& stats,
                         MetricFamilies* families) {
  const struct {
    const char* name;
    const char* help;
    MetricType type;
    double (*value)(const cache::LayerStats&);
  } series[] = {
      {"moed_expert_hits_total", "Experts of a step found resident", MetricType::Counter,
       [](const cache::LayerStats& layer) { return static_cast<double>(layer.hits_total); }},
      {"moed_expert_misses_total", "Experts of a step not resident", MetricType::Counter,
       [](const cache::LayerStats& layer) { return static_cast<double>(layer.misses_total); }},
      {"moed_expert_evictions_total", "Experts that lost their slot", MetricType::Counter,
       [](const cache::LayerStats& layer) { return static_cast<double>(layer.evictions_total); }},
      {"moed_expert_admissions_total", "Experts that got a slot", MetricType::Counter,
       [](const cache::LayerStats& layer) { return static_cast<double>(layer.admissions_total); }},
      {"moed_expert_layer_tokens_total", "Token-expert pairs routed", MetricType::Counter,
       [](const cache::LayerStats& layer) { return static_cast<double>(layer.tokens_total); }},
      {"moed_expert_stall_seconds_total", "Time that steps waited for experts", MetricType::Counter,
       [](const cache::LayerStats& layer) { return layer.stall_seconds_total; }},
      {"moed_expert_admissions_refused_total", "Misses colder than every resident",
       MetricType::Counter,
       [](const cache::LayerStats& layer) {
         return static_cast<double>(layer.refused_admissions_total);
       }},
      {"moed_experts_resident", "Experts in slots", MetricType::Gauge,
       [](const cache::LayerStats& layer) { return static_cast<double>(layer.resident); }},
      {"moed_expert_slots_floor", "Slots that no other layer may take", MetricType::Gauge,
       [](const cache::LayerStats& layer) { return static_cast<double>(layer.floor); }},
  };
  const std::vector<bool>& moe_layers = model.description.moe_layers;
  for (const auto& [name, help, type, value] : series) {
    FamilyBuilder family(model, name, help, type);
    for (size_t layer = 0; layer < stats.layers.size(); ++layer) {
      if (moe_layers[layer]) family.Add(value(stats.layers[layer]), LayerLabel(layer));
    }
    family.AppendTo(families);
  }
  FamilyBuilder bytes =
      Counter(model, "moed_expert_bytes_paged_total", "Bytes of missed experts by their path");
  for (size_t layer = 0; layer < stats.layers.size(); ++layer) {
    for (int path = 0; path < cache::kNumBytePaths; ++path) {
      const int64_t moved = stats.layers[layer].bytes_total[path];
      if (moved == 0) continue;
      Labels labels = LayerLabel(layer);
      labels.push_back({"path", kPathNames[path]});
      bytes.Add(static_cast<double>(moved), std::move(labels));
    }
  }
  bytes.AppendTo(families);
  FamilyBuilder resident =
      Gauge(model, "moed_expert_resident_bytes", "Bytes of the experts in slots");
  for (size_t layer = 0; layer < stats.layers.size(); ++layer) {
    if (!moe_layers[layer]) continue;
    resident.Add(Bytes(model, stats.layers[layer].resident), LayerLabel(layer));
  }
  resident.AppendTo(families);
  Gauge(model, "moed_expert_stored_ratio", "Bytes of an expert as served, over bf16's")
      .Add(model.description.expert_stored_ratio, {{"format", model.description.expert_format}})
      .AppendTo(families);
  Gauge(model, "moed_expert_slots", "Experts that the budget holds")
      .Add(stats.num_slots)
      .AppendTo(families);
  Gauge(model, "moed_expert_budget_bytes", "Bytes of the expert budget")
      .Add(Bytes(model, stats.num_slots))
      .AppendTo(families);
}

void AppendColdFamilies(const ServedModel& model, const model::ExpertSnapshot& experts,
                        MetricFamilies* families) {
  const backend::ColdNeurons& neurons = experts.cold_neurons;
  const int64_t late = neurons.computed - neurons.fetched_ahead;
  Counter(model, "moed_cold_neurons_total",
          "Neurons of cold experts that the CPU computed, by when it fetched their weights")
      .Add(static_cast<double>(neurons.fetched_ahead), {{"fetched", "ahead"}})
      .Add(static_cast<double>(late), {{"fetched", "on_request"}})
      .AppendTo(families);
  Gauge(model, "moed_cold_bytes_per_second",
        "Rate of cold experts in recent steps while link and CPU both bring some; 0: not measured")
      .Add(experts.cold_rates.link, {{"path", "link"}})
      .Add(experts.cold_rates.cpu, {{"path", "cpu"}})
      .AppendTo(families);
}

void AppendBalanceFamilies(const ServedModel& model,
                           const std::vector<cache::LayerBalance>& balance,
                           MetricFamilies* families) {
  FamilyBuilder loss =
      Gauge(model, "moed_expert_auxiliary_loss",
            "(n * sum of p^2 - 1)^2 of the average routing probabilities; 0: even");
  FamilyBuilder imbalance =
      Gauge(model, "moed_expert_imbalance_ratio", "Busiest expert's share over the even share");
  FamilyBuilder dead =
      Gauge(model, "moed_experts_dead", "Experts without a token in the last 4096 steps");
  for (size_t layer = 0; layer < balance.size(); ++layer) {
    if (balance[layer].token_share.empty()) continue;
    if (!balance[layer].probability.empty()) {
      loss.Add(balance[layer].auxiliary_loss, LayerLabel(layer));
    }
    imbalance.Add(balance[layer].imbalance, LayerLabel(layer));
    dead.Add(balance[layer].dead_experts, LayerLabel(layer));
  }
  loss.AppendTo(families);
  imbalance.AppendTo(families);
  dead.AppendTo(families);
}

void AppendBudgetFamilies(const ServedModel& model, const model::ExpertSnapshot& snapshot,
                          MetricFamilies* families) {
  constexpr double kPercents[] = {10, 25, 50, 75, 100};
  FamilyBuilder hit_rate = Gauge(model, "moed_expert_budget_hit_ratio",
                                 "Hit rate that this percentage of all experts would give");
  FamilyBuilder bytes = Gauge(model, "moed_expert_budget_bytes_per_token",
                              "Expert bytes that a token would miss at this budget");
  if (snapshot.budgets->demands_per_token == 0) return;
  for (double percent : kPercents) {
    const BudgetPoint point =
        EstimateBudget(model.description, snapshot,
                       static_cast<int>(percent / 100 * TotalExperts(model.description)));
    const Labels labels = {{"budget_percent", absl::StrCat(percent)}};
    hit_rate.Add(point.hit_rate, labels);
    bytes.Add(point.bytes_per_token, labels);
  }
  hit_rate.AppendTo(families);
  bytes.AppendTo(families);
}

void AppendExpertFamilies(const ServedModel& model, const cache::ExpertStats& stats,
                          MetricFamilies* families) {
  FamilyBuilder tokens = Counter(model, "moed_expert_tokens_total", "Tokens routed to an expert");
  for (size_t layer = 0; layer < stats.tokens_total.size(); ++layer) {
    for (size_t expert = 0; expert < stats.tokens_total[layer].size(); ++expert) {
      tokens.Add(static_cast<double>(stats.tokens_total[layer][expert]),
                 ExpertLabels(layer, expert));
    }
  }
  tokens.AppendTo(families);
  FamilyBuilder resident = Gauge(model, "moed_expert_is_resident", "1: the expert is in a slot");
  for (size_t layer = 0; layer < stats.resident.size(); ++layer) {
    for (size_t expert = 0; expert < stats.resident[layer].size(); ++expert) {
      resident.Add(stats.resident[layer][expert], ExpertLabels(layer, expert));
    }
  }
  resident.AppendTo(families);
}

}  // namespace moed::server
