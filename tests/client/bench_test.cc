#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "client/bench_plan.h"
#include "client/bench_report.h"
#include "client/length_distribution.h"

namespace moed::client {
namespace {

TEST(LengthDistributionTest, FixedAndUniformLengthsKeepTheirBounds) {
  std::mt19937_64 random(1);
  const auto fixed = LengthDistribution::Parse("128");
  const auto uniform = LengthDistribution::Parse("3:5");
  std::vector<int> seen(6);
  for (int i = 0; i < 1000; ++i) {
    EXPECT_EQ(fixed->Sample(random), 128);
    ++seen.at(uniform->Sample(random));
  }
  EXPECT_EQ(seen[3] + seen[4] + seen[5], 1000);
  EXPECT_GT(std::min({seen[3], seen[4], seen[5]}), 250);
}

TEST(LengthDistributionTest, LogNormalHasItsMedianAndSpread) {
  std::mt19937_64 random(1);
  const auto lengths = LengthDistribution::Parse("lognormal:100:0.5");
  int below = 0;
  double squares = 0;
  for (int i = 0; i < 10000; ++i) {
    const auto length = static_cast<double>(lengths->Sample(random));
    below += length < 100;
    squares += std::pow(std::log(length / 100), 2);
  }
  EXPECT_NEAR(below, 5000, 200);
  EXPECT_NEAR(std::sqrt(squares / 10000), 0.5, 0.02);
}

TEST(LengthDistributionTest, RefusesWhatIsNoLength) {
  for (const char* text :
       {"", "0", "-1", "a", "5:3", "1:2:3", "1:", ":1", "nan", "inf", "1e9", "lognormal",
        "lognormal:5", "lognormal:0:1", "lognormal:5:-1", "lognormal:5:nan"}) {
    EXPECT_EQ(LengthDistribution::Parse(text).status().code(), absl::StatusCode::kInvalidArgument)
        << text;
  }
}

BenchPlan PlanOf(const BenchSettings& settings) {
  return MakeBenchPlan(settings, *LengthDistribution::Parse("4:8"), *LengthDistribution::Parse("9"),
                       v1::GenerateRequest());
}

TEST(BenchPlanTest, ArrivalsAreAPoissonProcessOfTheGivenRate) {
  const BenchPlan plan = PlanOf({.num_requests = 20000, .rate_per_second = 50, .vocab_size = 10});
  double gap_squares = 0;
  for (size_t i = 1; i < plan.requests.size(); ++i) {
    const double gap = plan.requests[i].arrival_seconds - plan.requests[i - 1].arrival_seconds;
    EXPECT_GE(gap, 0);
    gap_squares += gap * gap;
  }
  EXPECT_EQ(plan.requests.front().arrival_seconds, 0);
  EXPECT_NEAR(plan.requests.back().arrival_seconds, 400, 12);
  // An exponential gap has twice the square of its mean as mean square.
  EXPECT_NEAR(gap_squares / 20000, 2 * 0.02 * 0.02, 0.05 * 0.0008);
}

TEST(BenchPlanTest, RequestsHaveRandomPromptsOfTheVocabularyAndExactLengths) {
  const BenchSettings settings = {
      .num_requests = 100, .concurrency = 3, .seed = 5, .vocab_size = 10};
  const BenchPlan plan = PlanOf(settings);
  EXPECT_EQ(plan.concurrency, 3);
  for (const BenchPlan::Request& request : plan.requests) {
    const auto& ids = request.request.tokens().ids();
    EXPECT_TRUE(ids.size() >= 4 && ids.size() <= 8);
    for (const int32_t id : ids) EXPECT_TRUE(id >= 0 && id < 10);
    EXPECT_EQ(request.request.stopping().max_tokens(), 9);
    EXPECT_EQ(request.request.stopping().min_tokens(), 9);
    EXPECT_TRUE(request.request.stopping().ignore_eos());
  }
  EXPECT_EQ(PlanOf(settings).requests[7].request.SerializeAsString(),
            plan.requests[7].request.SerializeAsString());
}

TEST(BenchReportTest, PercentilesAreByNearestRank) {
  const std::vector<double> values = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  EXPECT_EQ(Percentile({}, 50), 0);
  EXPECT_EQ(Percentile(values, 0), 1);
  EXPECT_EQ(Percentile(values, 50), 5);
  EXPECT_EQ(Percentile(values, 51), 6);
  EXPECT_EQ(Percentile(values, 90), 9);
  EXPECT_EQ(Percentile(values, 99), 10);
  EXPECT_EQ(Percentile(values, 100), 10);
}

TEST(BenchReportTest, LatenciesCountFromThePlannedArrival) {
  BenchRecord good;
  good.arrival_seconds = 1;
  good.token_seconds = {1.5, 1.75, 2.75};
  good.end_seconds = 3;
  good.usage.set_prompt_tokens(10);
  good.usage.set_completion_tokens(3);
  good.usage.mutable_experts()->set_hits(9);
  good.usage.mutable_experts()->set_misses(3);
  BenchRecord refused;
  refused.end_seconds = 4;
  refused.status = absl::ResourceExhaustedError("full");
  const BenchReport report = MakeBenchReport(std::vector<BenchRecord>{good, refused});
  EXPECT_EQ(report.requests, 2);
  EXPECT_EQ(report.succeeded, 1);
  EXPECT_EQ(report.failed.at("RESOURCE_EXHAUSTED"), 1);
  EXPECT_DOUBLE_EQ(report.time_to_first_token.p50_seconds, 0.5);
  EXPECT_DOUBLE_EQ(report.inter_token.mean_seconds, 0.625);
  EXPECT_DOUBLE_EQ(report.inter_token.max_seconds, 1);
  EXPECT_DOUBLE_EQ(report.end_to_end.p99_seconds, 2);

  const nlohmann::json json = report.ToJson();
  EXPECT_EQ(json["completion_tokens_per_second"], 0.75);
  EXPECT_EQ(json["inter_token"]["count"], 2);
  EXPECT_EQ(json["failed"]["RESOURCE_EXHAUSTED"], 1);
  EXPECT_NE(report.ToText().find("75.0 % hits"), std::string::npos);
}

TEST(BenchReportTest, NoRequestsAreReportedWithoutDividingByZero) {
  const BenchReport report = MakeBenchReport({});
  EXPECT_EQ(report.ToJson()["requests_per_second"], 0.0);
  EXPECT_EQ(report.end_to_end.count, 0);
}

}  // namespace
}  // namespace moed::client
