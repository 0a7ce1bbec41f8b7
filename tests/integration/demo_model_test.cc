// The whole chain on real weights: the demo checkpoint behind a socket.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "server/model_host.h"
#include "tests/integration/test_server.h"

namespace moed::server {
namespace {

Options DemoOptions(const std::string& expert_budget) {
  Options options;
  options.model = MOED_DEMO_MODEL;
  options.cpu_threads = 1;
  options.kv_cache_bytes = 64 << 20;
  options.expert_budget = expert_budget;
  return options;
}

class DemoModelTest : public testing::Test {
 protected:
  explicit DemoModelTest(const std::string& expert_budget = "auto")
      : server_(DemoOptions(expert_budget), LoadModel) {
    server_.WaitUntilLoaded();
  }

  v1::GenerateRequest TextRequest(const std::string& text, int64_t max_tokens) {
    v1::GenerateRequest request = TokensRequest(0, max_tokens);
    request.set_text(text);
    return request;
  }

  TestServer server_;
};

TEST_F(DemoModelTest, StreamedTextIsTheWholeText) {
  const v1::GenerateRequest request = TextRequest("Once upon a time", 32);
  const StreamOutcome streamed = Generate(server_.inference(), request);
  ASSERT_TRUE(streamed.status.ok()) << streamed.status.error_message();
  grpc::ClientContext context;
  v1::GenerateOnceResponse once;
  ASSERT_TRUE(server_.inference().GenerateOnce(&context, request, &once).ok());
  EXPECT_EQ(streamed.text, once.completions(0).text());
  EXPECT_GT(streamed.messages, 1);

  v1::DetokenizeRequest detokenize;
  detokenize.mutable_token_ids()->Add(streamed.tokens.begin(), streamed.tokens.end());
  grpc::ClientContext detokenize_context;
  v1::DetokenizeResponse detokenized;
  ASSERT_TRUE(server_.inference().Detokenize(&detokenize_context, detokenize, &detokenized).ok());
  EXPECT_EQ(detokenized.text(), streamed.text);
}

TEST_F(DemoModelTest, ChatAndLogprobs) {
  v1::ChatRequest request;
  v1::ChatMessage* message = request.add_messages();
  message->set_role("user");
  message->set_content("Once upon");
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_logprobs(3);
  request.mutable_sampling()->set_prompt_logprobs(2);
  request.mutable_stopping()->set_max_tokens(4);
  request.mutable_stopping()->set_ignore_eos(true);
  grpc::ClientContext context;
  auto reader = server_.inference().Chat(&context, request);
  v1::GenerateResponse response;
  int prompt_tokens = 0, generated = 0;
  while (reader->Read(&response)) {
    if (response.has_prompt_logprobs()) prompt_tokens = response.prompt_logprobs().tokens_size();
    for (const v1::Token& token : response.delta().tokens()) {
      ++generated;
      ASSERT_EQ(token.top_size(), 3);
      EXPECT_EQ(token.top(0).id(), token.id());  // greedy
      EXPECT_LE(token.logprob(), 0);
    }
  }
  const grpc::Status status = reader->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(generated, 4);
  EXPECT_EQ(prompt_tokens, response.finished().usage().prompt_tokens());
}

TEST_F(DemoModelTest, GetModelDescribesTheCheckpoint) {
  grpc::ClientContext context;
  v1::GetModelResponse model;
  ASSERT_TRUE(server_.inference().GetModel(&context, {}, &model).ok());
  EXPECT_EQ(model.model(), "demo");
  EXPECT_EQ(model.family(), "qwen3_moe");
  EXPECT_EQ(model.vocab_size(), 2048);
  EXPECT_EQ(model.num_moe_layers(), 6);
  EXPECT_EQ(model.num_experts(), 32);
  EXPECT_EQ(model.experts_per_token(), 4);
  EXPECT_EQ(model.expert_slots(), 6 * 32);
  EXPECT_TRUE(model.has_tokenizer());
  EXPECT_TRUE(model.has_chat_template());
  EXPECT_GT(model.parameters(), model.active_parameters());
}

class PagedDemoModelTest : public DemoModelTest {
 protected:
  PagedDemoModelTest() : DemoModelTest("25%") {}
};

// Usage of all requests against the counters of the server, as a bill against a meter.
TEST_F(PagedDemoModelTest, ExpertUsageOfRequestsAddsUpToTheTotals) {
  const auto totals = [this] {
    grpc::ClientContext context;
    v1::ExpertStats stats;
    EXPECT_TRUE(server_.experts().GetStats(&context, {}, &stats).ok());
    v1::ExpertUsage sum;
    for (const v1::LayerStats& layer : stats.layers()) {
      sum.set_hits(sum.hits() + static_cast<double>(layer.hits_total()));
      sum.set_misses(sum.misses() + static_cast<double>(layer.misses_total()));
      sum.set_bytes_paged(sum.bytes_paged() + static_cast<double>(layer.bytes_paged_total()));
      sum.set_stall_seconds(sum.stall_seconds() + layer.stall_seconds_total());
    }
    return sum;
  };
  const v1::ExpertUsage before = totals();
  constexpr int kRequests = 12;
  std::vector<StreamOutcome> outcomes(kRequests);
  std::vector<std::thread> clients;
  for (int i = 0; i < kRequests; ++i) {
    clients.emplace_back([this, i, &outcome = outcomes[i]] {
      outcome = Generate(server_.inference(), TokensRequest(3 + 5 * i, 4 + i));
    });
  }
  for (std::thread& client : clients) client.join();
  v1::ExpertUsage sum;
  for (const StreamOutcome& outcome : outcomes) {
    ASSERT_TRUE(outcome.status.ok()) << outcome.status.error_message();
    const v1::ExpertUsage& usage = outcome.finished.usage().experts();
    sum.set_hits(sum.hits() + usage.hits());
    sum.set_misses(sum.misses() + usage.misses());
    sum.set_bytes_paged(sum.bytes_paged() + usage.bytes_paged());
    sum.set_stall_seconds(sum.stall_seconds() + usage.stall_seconds());
  }
  const v1::ExpertUsage after = totals();
  EXPECT_GT(sum.misses(), 0);
  EXPECT_NEAR(sum.hits(), after.hits() - before.hits(), 1e-6 * after.hits());
  EXPECT_NEAR(sum.misses(), after.misses() - before.misses(), 1e-6 * after.misses());
  EXPECT_NEAR(sum.bytes_paged(), after.bytes_paged() - before.bytes_paged(),
              1e-6 * after.bytes_paged());
  EXPECT_NEAR(sum.stall_seconds(), after.stall_seconds() - before.stall_seconds(), 1e-6);
}

TEST_F(PagedDemoModelTest, PagedExpertsGiveTheTokensOfResidentOnes) {
  TestServer resident(DemoOptions("100%"), LoadModel);
  resident.WaitUntilLoaded();
  const v1::GenerateRequest request = TextRequest("The sun rose over", 48);
  EXPECT_EQ(Generate(server_.inference(), request).tokens,
            Generate(resident.inference(), request).tokens);
}

TEST_F(PagedDemoModelTest, PerExpertCountsAddUpToTheirLayer) {
  ASSERT_TRUE(Generate(server_.inference(), TokensRequest(20, 20)).status.ok());
  grpc::ClientContext context;
  v1::GetExpertStatsRequest request;
  request.set_per_expert(true);
  v1::ExpertStats stats;
  ASSERT_TRUE(server_.experts().GetStats(&context, request, &stats).ok());
  ASSERT_EQ(stats.layers_size(), 6);
  for (const v1::LayerStats& layer : stats.layers()) {
    int64_t tokens = 0, resident = 0;
    for (int64_t count : layer.expert_tokens_total()) tokens += count;
    for (bool is_resident : layer.expert_resident()) resident += is_resident ? 1 : 0;
    EXPECT_EQ(tokens, layer.tokens_total());
    EXPECT_EQ(resident, layer.resident());
    EXPECT_EQ(layer.expert_tokens_total_size(), 32);
  }
  const std::string text = HttpGet(server_.metrics_port(), "/metrics/experts");
  EXPECT_THAT(text, testing::HasSubstr("moed_expert_tokens_total{layer=\"5\",expert=\"31\""));
}

}  // namespace
}  // namespace moed::server
