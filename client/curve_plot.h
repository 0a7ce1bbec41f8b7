// The budget curve as text: a plot for a terminal, or comma-separated values. Pure functions.
#pragma once

#include <string>

#include "proto/moed/v1/experts.pb.h"

namespace moed::client {

// Hit rate over budget, `columns` wide in all; the budget in force is marked.
std::string CurvePlot(const v1::BudgetCurve& curve, int columns);

// One line a point, after a header.
std::string CurveCsv(const v1::BudgetCurve& curve);

}  // namespace moed::client
