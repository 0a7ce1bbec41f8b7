#include "server/translate_response.h"

#include <gtest/gtest.h>

#include "tests/server/served_model_for_test.h"

namespace moed::server {
namespace {

TEST(TranslateResponseTest, CarriesUsageWithExpertShares) {
  v1::Usage usage;
  FillUsage({.prompt_tokens = 1,
             .completion_tokens = 2,
             .cached_tokens = 3,
             .time_to_first_token_seconds = 0.25,
             .queue_seconds = 0.5,
             .experts = {.hits = 4.5, .misses = 5.5, .bytes_paged = 6, .stall_seconds = 7}},
            &usage);
  EXPECT_EQ(usage.prompt_tokens(), 1);
  EXPECT_EQ(usage.completion_tokens(), 2);
  EXPECT_EQ(usage.cached_tokens(), 3);
  EXPECT_EQ(usage.time_to_first_token_seconds(), 0.25);
  EXPECT_EQ(usage.queue_seconds(), 0.5);
  EXPECT_EQ(usage.experts().hits(), 4.5);
  EXPECT_EQ(usage.experts().misses(), 5.5);
  EXPECT_EQ(usage.experts().bytes_paged(), 6);
  EXPECT_EQ(usage.experts().stall_seconds(), 7);
}

TEST(TranslateResponseTest, FinishTellsReasonAndWhatMatched) {
  v1::SequenceFinish finish;
  FillSequenceFinish({.index = 1,
                      .reason = engine::FinishReason::kStop,
                      .matched_stop = "END",
                      .matched_token = std::nullopt},
                     &finish);
  EXPECT_EQ(finish.index(), 1);
  EXPECT_EQ(finish.reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(finish.matched_stop(), "END");
  EXPECT_FALSE(finish.has_matched_token_id());
}

TEST(TranslateResponseTest, DescribesTheModel) {
  const auto model = DescribedModel();
  model->generation.temperature = 0.8f;
  model->generation.eos_token_ids = {0};
  v1::GetModelResponse response;
  FillModel(*model, &response);
  EXPECT_EQ(response.model(), "demo");
  EXPECT_EQ(response.num_layers(), 3);
  EXPECT_EQ(response.num_moe_layers(), 2);
  EXPECT_EQ(response.expert_slots(), 4);
  EXPECT_FALSE(response.has_tokenizer());
  EXPECT_EQ(response.eos_token_ids(0), 0);
  EXPECT_FLOAT_EQ(response.default_sampling().temperature(), 0.8f);
  EXPECT_FALSE(response.default_sampling().has_top_k());
  EXPECT_FALSE(response.server_version().empty());
}

TEST(TranslateResponseTest, ExpertStatsListMoeLayersOnly) {
  const auto model = DescribedModel();
  const auto snapshot = model->experts();
  v1::ExpertStats message;
  FillExpertStats(*model, *snapshot, /*per_expert=*/false, &message);
  ASSERT_EQ(message.layers_size(), 2);
  EXPECT_EQ(message.layers(0).layer(), 0);
  EXPECT_EQ(message.layers(1).layer(), 2);
  EXPECT_EQ(message.layers(1).misses_total(), 5);
  EXPECT_EQ(message.layers(1).bytes_paged_total(), 5 * 1024);
  EXPECT_EQ(message.layers(1).expert_tokens_total_size(), 0);
  EXPECT_EQ(message.budget_bytes(), 4 * 1024);

  v1::ExpertStats with_experts;
  FillExpertStats(*model, *snapshot, /*per_expert=*/true, &with_experts);
  ASSERT_EQ(with_experts.layers(1).expert_tokens_total_size(), 4);
  EXPECT_EQ(with_experts.layers(1).expert_tokens_total(3), 8);
  EXPECT_TRUE(with_experts.layers(0).expert_resident(3));
  EXPECT_FALSE(with_experts.layers(0).expert_resident(1));
}

}  // namespace
}  // namespace moed::server
