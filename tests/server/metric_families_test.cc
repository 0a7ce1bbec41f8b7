#include "server/metric_families.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

#include "tests/server/served_model_for_test.h"

namespace moed::server {
namespace {

using testing::HasSubstr;
using testing::Not;

std::string Text(const MetricFamilies& families) {
  return prometheus::TextSerializer().Serialize(families);
}

TEST(MetricFamiliesTest, LayersWithoutExpertsHaveNoSeries) {
  const auto model = DescribedModel();
  MetricFamilies families;
  AppendLayerFamilies(*model, model->experts()->cache, &families);
  const std::string text = Text(families);
  EXPECT_THAT(text, HasSubstr("moed_expert_hits_total{layer=\"0\",model_name=\"demo\"} 3"));
  EXPECT_THAT(text, HasSubstr("moed_expert_misses_total{layer=\"2\",model_name=\"demo\"} 5"));
  EXPECT_THAT(
      text,
      HasSubstr(
          "moed_expert_bytes_paged_total{layer=\"2\",path=\"disk\",model_name=\"demo\"} 5120"));
  EXPECT_THAT(text, Not(HasSubstr("layer=\"1\"")));
  EXPECT_THAT(text, Not(HasSubstr("path=\"link\"")));
}

TEST(MetricFamiliesTest, EveryExpertHasItsTokensAndItsResidency) {
  const auto model = DescribedModel();
  MetricFamilies families;
  AppendExpertFamilies(*model, model->experts()->experts, &families);
  ASSERT_EQ(families.size(), 2u);
  EXPECT_EQ(families[0].metric.size(), 8u);
  EXPECT_EQ(families[1].metric.size(), 8u);
  const std::string text = Text(families);
  for (const char* line :
       {"moed_expert_tokens_total{layer=\"2\",expert=\"3\",model_name=\"demo\"} 8",
        "moed_expert_is_resident{layer=\"2\",expert=\"2\",model_name=\"demo\"} 1",
        "moed_expert_is_resident{layer=\"2\",expert=\"3\",model_name=\"demo\"} 0"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

TEST(MetricFamiliesTest, OtherBudgetsAreEstimatedOnceThereIsRouting) {
  const auto model = DescribedModel();
  model::ExpertSnapshot snapshot;
  MetricFamilies families;
  AppendBudgetFamilies(*model, snapshot, &families);
  EXPECT_TRUE(families.empty());
  snapshot.budgets = std::make_shared<const cache::BudgetEstimate>(cache::BudgetEstimate{
      .hit_rate = {0, 0.1F, 0.2F, 0.3F, 0.5F, 0.6F, 0.7F, 0.8F, 0.875F}, .demands_per_token = 4});
  AppendBudgetFamilies(*model, snapshot, &families);
  const std::string text = Text(families);
  for (const char* line :
       {"moed_expert_budget_hit_ratio{budget_percent=\"50\",model_name=\"demo\"} 0.5",
        "moed_expert_budget_hit_ratio{budget_percent=\"100\",model_name=\"demo\"} 0.875",
        "moed_expert_budget_bytes_per_token{budget_percent=\"100\",model_name=\"demo\"} 512"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

TEST(MetricFamiliesTest, ColdExpertsAreCountedByWhoBringsThemAndWhen) {
  const auto model = DescribedModel();
  MetricFamilies families;
  model::ExpertSnapshot snapshot;
  snapshot.cold_neurons = {.computed = 100, .fetched_ahead = 30};
  snapshot.cold_rates = {.link = 500, .cpu = 1250};
  AppendColdFamilies(*model, snapshot, &families);
  const std::string text = Text(families);
  for (const char* line : {"moed_cold_neurons_total{fetched=\"ahead\",model_name=\"demo\"} 30",
                           "moed_cold_neurons_total{fetched=\"on_request\",model_name=\"demo\"} 70",
                           "moed_cold_bytes_per_second{path=\"link\",model_name=\"demo\"} 500",
                           "moed_cold_bytes_per_second{path=\"cpu\",model_name=\"demo\"} 1250"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

TEST(MetricFamiliesTest, BalanceSkipsLayersWithoutTokens) {
  const auto model = DescribedModel();
  std::vector<cache::LayerBalance> balance(3);
  balance[2] = {.auxiliary_loss = 0.25,
                .imbalance = 1.5,
                .dead_experts = 1,
                .probability = {0.25F, 0.25F, 0.25F, 0.25F},
                .token_share = {0.25F, 0.25F, 0.25F, 0.25F}};
  MetricFamilies families;
  AppendBalanceFamilies(*model, balance, &families);
  const std::string text = Text(families);
  EXPECT_THAT(text, HasSubstr("moed_expert_auxiliary_loss{layer=\"2\",model_name=\"demo\"} 0.25"));
  EXPECT_THAT(text, HasSubstr("moed_experts_dead{layer=\"2\",model_name=\"demo\"} 1"));
  EXPECT_THAT(text, Not(HasSubstr("layer=\"0\"")));
}

TEST(MetricFamiliesTest, GatewaysFindTheirNames) {
  const auto model = DescribedModel();
  engine::EngineSnapshot snapshot;
  snapshot.running = 3;
  snapshot.waiting = 4;
  snapshot.kv_blocks_total = 8;
  snapshot.kv_blocks_used = 2;
  MetricFamilies families;
  AppendGatewayFamilies(*model, snapshot, &families);
  const std::string text = Text(families);
  EXPECT_THAT(text, HasSubstr("vllm:num_requests_running{model_name=\"demo\"} 3"));
  EXPECT_THAT(text, HasSubstr("vllm:num_requests_waiting{model_name=\"demo\"} 4"));
  EXPECT_THAT(text, HasSubstr("vllm:kv_cache_usage_perc{model_name=\"demo\"} 0.25"));
  EXPECT_THAT(text, HasSubstr("block_size=\"16\",num_gpu_blocks=\"8\""));
}

TEST(MetricFamiliesTest, HistogramsAreCumulativeAndCodesAppearWhenSeen) {
  const auto model = DescribedModel();
  RequestMetrics metrics(64);
  metrics.CountEnd(grpc::StatusCode::INVALID_ARGUMENT);
  RequestTimer timer(&metrics, 1);
  timer.OnDelta({.index = 0, .tokens = {{.id = 1}}, .text = ""});
  engine::Usage usage;
  usage.prompt_tokens = 3;
  usage.completion_tokens = 30;
  timer.OnDone(usage);
  MetricFamilies families;
  AppendRequestFamilies(*model, metrics, &families);
  const std::string text = Text(families);
  EXPECT_THAT(text, HasSubstr("code=\"INVALID_ARGUMENT\",model_name=\"demo\"} 1"));
  EXPECT_THAT(text, Not(HasSubstr("code=\"OK\"")));
  EXPECT_THAT(text, HasSubstr("moed_request_prompt_tokens_bucket{model_name=\"demo\",le=\"2\"} 0"));
  EXPECT_THAT(text, HasSubstr("moed_request_prompt_tokens_bucket{model_name=\"demo\",le=\"5\"} 1"));
  EXPECT_THAT(text,
              HasSubstr("moed_request_prompt_tokens_bucket{model_name=\"demo\",le=\"+Inf\"} 1"));
  EXPECT_THAT(text, HasSubstr("moed_request_generation_tokens_sum{model_name=\"demo\"} 30"));
  EXPECT_THAT(text, HasSubstr("moed_time_to_first_token_seconds_count{model_name=\"demo\"} 1"));
}

}  // namespace
}  // namespace moed::server
