#include "server/status_json.h"

#include <nlohmann/json.hpp>

#include <memory>
#include <numeric>
#include <utility>

#include "server/budget_curve.h"

namespace moed::server {
namespace {

using Json = nlohmann::json;

constexpr int kCurvePoints = 48;

Json ModelJson(const ServedModel& served) {
  const ModelDescription& model = served.description;
  return {{"name", served.name},
          {"family", model.family},
          {"device", model.device},
          {"layers", model.num_layers},
          {"experts", model.num_experts},
          {"experts_per_token", model.experts_per_token},
          {"parameters", model.parameters},
          {"active_parameters", model.active_parameters},
          {"expert_format", model.expert_format},
          {"expert_bytes", model.expert_bytes},
          {"context_tokens", model.max_model_len}};
}

Json LoadJson(const engine::EngineSnapshot& engine) {
  return {{"running", engine.running},
          {"waiting", engine.waiting},
          {"kv_usage", KvUsage(engine)},
          {"steps_total", engine.steps_total},
          {"prompt_tokens_total", engine.prompt_tokens_total},
          {"generation_tokens_total", engine.generation_tokens_total}};
}

Json LayersJson(const ModelDescription& model, const model::ExpertSnapshot& snapshot) {
  Json layers = Json::array();
  for (size_t layer = 0; layer < snapshot.cache.layers.size(); ++layer) {
    if (!model.moe_layers[layer]) continue;
    const cache::LayerStats& stats = snapshot.cache.layers[layer];
    Json entry = {
        {"layer", layer},
        {"hits", stats.hits_total},
        {"misses", stats.misses_total},
        {"evictions", stats.evictions_total},
        {"stall_seconds", stats.stall_seconds_total},
        {"bytes", std::accumulate(stats.bytes_total.begin(), stats.bytes_total.end(), int64_t{0})},
        {"resident", stats.resident}};
    if (layer < snapshot.experts.tokens_total.size()) {
      entry["expert_tokens"] = snapshot.experts.tokens_total[layer];
      entry["expert_resident"] = snapshot.experts.resident[layer];
    }
    if (layer < snapshot.balance->size()) {
      const cache::LayerBalance& balance = (*snapshot.balance)[layer];
      entry["auxiliary_loss"] = balance.auxiliary_loss;
      entry["imbalance"] = balance.imbalance;
      entry["dead_experts"] = balance.dead_experts;
    }
    layers.push_back(std::move(entry));
  }
  return layers;
}

Json PointJson(const BudgetPoint& point) {
  return {{"slots", point.slots},
          {"hit_rate", point.hit_rate},
          {"bytes_per_token", point.bytes_per_token}};
}

Json CurveJson(const ModelDescription& model, const model::ExpertSnapshot& snapshot) {
  Json curve = Json::array();
  for (int slots : SpreadBudgets(model, kCurvePoints)) {
    curve.push_back(PointJson(EstimateBudget(model, snapshot, slots)));
  }
  return curve;
}

}  // namespace

std::string StatusJson(const ServedModel* served, double uptime_seconds) {
  if (served == nullptr) return Json({{"loading", true}}).dump();
  const std::shared_ptr<const model::ExpertSnapshot> experts = served->experts();
  const Json status = {{"loading", false},
                       {"uptime_seconds", uptime_seconds},
                       {"model", ModelJson(*served)},
                       {"load", LoadJson(served->engine->Snapshot())},
                       {"policy", experts->cache.policy},
                       {"slots", experts->cache.num_slots},
                       {"total_experts", TotalExperts(served->description)},
                       {"layers", LayersJson(served->description, *experts)},
                       {"curve", CurveJson(served->description, *experts)}};
  // Names may hold any bytes; JSON may not.
  return status.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace moed::server
