#include "client/curve_plot.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/quantities.h"

namespace moed::client {
namespace {

constexpr int kRows = 10;
constexpr int kAxisColumns = 8;  // "100 % | "
constexpr const char* kEighths[] = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};

// The hit rate at `slots`, between the points around it.
double HitRateAt(const v1::BudgetCurve& curve, double slots) {
  for (int i = 0; i < curve.points_size(); ++i) {
    const v1::BudgetPoint& point = curve.points(i);
    if (point.slots() < slots) continue;
    if (i == 0 || point.slots() == slots) return point.hit_rate();
    const v1::BudgetPoint& before = curve.points(i - 1);
    const double part = (slots - before.slots()) / (point.slots() - before.slots());
    return before.hit_rate() + part * (point.hit_rate() - before.hit_rate());
  }
  return curve.points_size() == 0 ? 0 : curve.points(curve.points_size() - 1).hit_rate();
}

// How much of row `row` (0 at the top) a bar of height `hit_rate` fills, in eighths.
int Eighths(double hit_rate, int row) {
  const double height = hit_rate * kRows * 8;
  return std::clamp(static_cast<int>(std::lround(height)) - 8 * (kRows - 1 - row), 0, 8);
}

}  // namespace

std::string CurvePlot(const v1::BudgetCurve& curve, int columns) {
  const int width = std::max(10, columns - kAxisColumns);
  const auto slots_of = [&](int column) {
    return static_cast<double>(curve.total_experts()) * (column + 1) / width;
  };
  std::string plot;
  for (int row = 0; row < kRows; ++row) {
    absl::StrAppendFormat(&plot, row % 2 == 0 ? "%5d %%|" : "       |",
                          100 * (kRows - row) / kRows);
    for (int column = 0; column < width; ++column) {
      absl::StrAppend(&plot, kEighths[Eighths(HitRateAt(curve, slots_of(column)), row)]);
    }
    absl::StrAppend(&plot, "\n");
  }
  const v1::BudgetPoint& now = curve.current();
  const int total = std::max(1, curve.total_experts());
  const int here = std::clamp(width * now.slots() / total - 1, 0, width - 1);
  absl::StrAppend(&plot, std::string(kAxisColumns, ' '), std::string(here, ' '), "^\n");
  absl::StrAppendFormat(&plot, "now %s (%d of %d experts): hit rate %s, %s paged a token\n",
                        Bytes(static_cast<double>(now.budget_bytes())), now.slots(), total,
                        Percent(now.hit_rate(), 1), Bytes(now.bytes_per_token()));
  for (const v1::BudgetPoint& point : curve.points()) {
    if (point.slots() <= now.slots() || point.hit_rate() < now.hit_rate() + 0.02) continue;
    absl::StrAppendFormat(&plot, "+%s: hit rate %s, %s paged a token\n",
                          Bytes(static_cast<double>(point.budget_bytes() - now.budget_bytes())),
                          Percent(point.hit_rate(), 1), Bytes(point.bytes_per_token()));
    break;
  }
  return plot;
}

std::string CurveCsv(const v1::BudgetCurve& curve) {
  std::string csv = "slots,budget_bytes,hit_rate,bytes_per_token\n";
  for (const v1::BudgetPoint& point : curve.points()) {
    absl::StrAppendFormat(&csv, "%d,%d,%.4f,%.0f\n", point.slots(), point.budget_bytes(),
                          point.hit_rate(), point.bytes_per_token());
  }
  return csv;
}

}  // namespace moed::client
