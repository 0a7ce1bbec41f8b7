#include "client/curve_plot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace moed::client {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

void SetPoint(v1::BudgetPoint* point, int slots, double hit_rate, double bytes_per_token) {
  point->set_slots(slots);
  point->set_budget_bytes(int64_t{slots} * 1'000'000);
  point->set_hit_rate(hit_rate);
  point->set_bytes_per_token(bytes_per_token);
}

v1::BudgetCurve Curve() {
  v1::BudgetCurve curve;
  curve.set_total_experts(100);
  SetPoint(curve.add_points(), 10, 0.3, 7e6);
  SetPoint(curve.add_points(), 50, 0.74, 2.6e6);
  SetPoint(curve.add_points(), 100, 1, 0);
  SetPoint(curve.mutable_current(), 50, 0.74, 2.6e6);
  return curve;
}

TEST(CurvePlotTest, SaysWhatMoreWouldBuy) {
  const std::string plot = CurvePlot(Curve(), 60);
  EXPECT_THAT(plot, HasSubstr("now 50 MB (50 of 100 experts): hit rate 74.0 %"));
  EXPECT_THAT(plot, HasSubstr("+50 MB: hit rate 100.0 %"));
}

TEST(CurvePlotTest, MarksTheBudgetInForceAndFillsTheLastColumn) {
  const std::string plot = CurvePlot(Curve(), 60);
  const size_t top = plot.find("100 %");
  ASSERT_NE(top, std::string::npos);
  const std::string first_row = plot.substr(top, plot.find('\n') - top);
  EXPECT_THAT(first_row, HasSubstr("█"));
  const size_t mark = plot.find('^');
  EXPECT_EQ(mark - plot.rfind('\n', mark) - 1, 8 + (60 - 8) / 2 - 1u);
}

TEST(CurvePlotTest, EmptyCurveIsNoCrash) { EXPECT_THAT(CurvePlot({}, 40), Not(HasSubstr("+"))); }

TEST(CurvePlotTest, CsvHasALineAPoint) {
  EXPECT_EQ(CurveCsv(Curve()),
            "slots,budget_bytes,hit_rate,bytes_per_token\n"
            "10,10000000,0.3000,7000000\n"
            "50,50000000,0.7400,2600000\n"
            "100,100000000,1.0000,0\n");
}

}  // namespace
}  // namespace moed::client
