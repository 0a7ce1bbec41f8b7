// What other expert budgets would give, from the cache's live estimate. Pure functions.
#pragma once

#include <vector>

#include "proto/moed/v1/experts.pb.h"
#include "runtime/model/model_runner.h"
#include "server/served_model.h"

namespace moed::server {

struct BudgetPoint {
  int slots = 0;
  double hit_rate = 0;         // 0 to 1
  double bytes_per_token = 0;  // of missed experts
};

// Budgets beyond all experts count as all. Zeroes before the first step.
BudgetPoint EstimateBudget(const ModelDescription& model, const model::ExpertSnapshot& snapshot,
                           int slots);

// `count` budgets (at least 2) from the smallest legal one to all experts, at even distances.
std::vector<int> SpreadBudgets(const ModelDescription& model, int count);

void FillBudgetCurve(const ModelDescription& model, const model::ExpertSnapshot& snapshot,
                     const v1::GetBudgetCurveRequest& request, v1::BudgetCurve* message);

}  // namespace moed::server
