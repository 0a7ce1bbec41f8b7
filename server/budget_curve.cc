#include "server/budget_curve.h"

#include <algorithm>
#include <cstdint>

namespace moed::server {
namespace {

constexpr int kDefaultPoints = 32;

void FillPoint(const ModelDescription& model, const BudgetPoint& point, v1::BudgetPoint* message) {
  message->set_slots(point.slots);
  message->set_budget_bytes(point.slots * model.expert_bytes);
  message->set_hit_rate(point.hit_rate);
  message->set_bytes_per_token(point.bytes_per_token);
}

}  // namespace

BudgetPoint EstimateBudget(const ModelDescription& model, const model::ExpertSnapshot& snapshot,
                           int slots) {
  const cache::BudgetEstimate& estimate = *snapshot.budgets;
  BudgetPoint point = {.slots = std::min(slots, TotalExperts(model))};
  if (estimate.hit_rate.empty()) return point;
  const size_t last = estimate.hit_rate.size() - 1;
  point.hit_rate = estimate.hit_rate[std::min<size_t>(point.slots, last)];
  point.bytes_per_token =
      (1 - point.hit_rate) * estimate.demands_per_token * static_cast<double>(model.expert_bytes);
  return point;
}

std::vector<int> SpreadBudgets(const ModelDescription& model, int count) {
  const int64_t smallest = model.experts_per_token;
  const int64_t range = TotalExperts(model) - smallest;
  std::vector<int> budgets;
  for (int i = 0; i < count; ++i) {
    budgets.push_back(static_cast<int>(smallest + range * i / (count - 1)));
  }
  budgets.erase(std::unique(budgets.begin(), budgets.end()), budgets.end());
  return budgets;
}

void FillBudgetCurve(const ModelDescription& model, const model::ExpertSnapshot& snapshot,
                     const v1::GetBudgetCurveRequest& request, v1::BudgetCurve* message) {
  std::vector<int> budgets(request.slots().begin(), request.slots().end());
  if (budgets.empty()) budgets = SpreadBudgets(model, kDefaultPoints);
  for (int slots : budgets) {
    FillPoint(model, EstimateBudget(model, snapshot, slots), message->add_points());
  }
  FillPoint(model, EstimateBudget(model, snapshot, snapshot.cache.num_slots),
            message->mutable_current());
  message->set_total_experts(TotalExperts(model));
}

}  // namespace moed::server
