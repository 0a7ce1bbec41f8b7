// moedctl as a script sees it: arguments in; stdout, stderr and the exit code out.

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "client/command.h"
#include "tests/client/fake_server.h"

namespace moed::client {
namespace {

using grpc::health::v1::HealthCheckResponse;

struct Outcome {
  int exit_code = 0;
  std::string out;
  std::string err;
};

Outcome Moedctl(const FakeServer& server, std::vector<const char*> arguments) {
  const std::string address = server.address();
  arguments.insert(arguments.begin(), {"moedctl", "--address", address.c_str()});
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  Outcome outcome;
  outcome.exit_code = RunMoedctl(static_cast<int>(arguments.size()), arguments.data());
  outcome.out = testing::internal::GetCapturedStdout();
  outcome.err = testing::internal::GetCapturedStderr();
  return outcome;
}

TEST(MoedctlTest, GenerateWithJsonPrintsOneObject) {
  FakeServer server;
  server.responses = {DeltaOf(0, "ab", {1, 2}), FinishedOf(1, v1::FINISH_REASON_LENGTH)};
  const Outcome outcome =
      Moedctl(server, {"generate", "--prompt-tokens", "5,6,7", "--max-tokens", "2", "--temperature",
                       "0", "--ignore-eos", "--logprobs", "3", "--json"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  const nlohmann::json json = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(json["text"], "ab");
  EXPECT_EQ(json["finish_reason"], "length");

  const v1::GenerateRequest& request = server.generate_request;
  EXPECT_EQ(request.tokens().ids_size(), 3);
  EXPECT_EQ(request.stopping().max_tokens(), 2);
  EXPECT_TRUE(request.stopping().ignore_eos());
  EXPECT_EQ(request.sampling().logprobs(), 3);
  EXPECT_TRUE(request.sampling().has_temperature());
  EXPECT_EQ(request.sampling().temperature(), 0);
  EXPECT_FALSE(request.sampling().has_top_p()) << "the server's default holds";
}

TEST(MoedctlTest, GeneratePassesEveryOption) {
  FakeServer server;
  server.responses = {FinishedOf(1, v1::FINISH_REASON_STOP)};
  const Outcome outcome = Moedctl(server, {"generate",
                                           "--prompt",
                                           "Hi",
                                           "--top-k",
                                           "4",
                                           "--top-p",
                                           "0.9",
                                           "--min-p",
                                           "0.1",
                                           "--seed",
                                           "18446744073709551615",
                                           "--n",
                                           "2",
                                           "--stop",
                                           "a b",
                                           "--stop",
                                           "c",
                                           "--stop-token-ids",
                                           "8,9",
                                           "--min-tokens",
                                           "1",
                                           "--repetition-penalty",
                                           "1.5",
                                           "--presence-penalty",
                                           "-0.5",
                                           "--frequency-penalty",
                                           "0.25",
                                           "--logit-bias",
                                           "3=-2.5",
                                           "--prompt-logprobs",
                                           "2",
                                           "--model",
                                           "m"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  const v1::GenerateRequest& request = server.generate_request;
  EXPECT_EQ(request.text(), "Hi");
  EXPECT_EQ(request.model(), "m");
  EXPECT_EQ(request.n(), 2);
  const v1::SamplingParams& sampling = request.sampling();
  EXPECT_EQ(sampling.top_k(), 4);
  EXPECT_FLOAT_EQ(sampling.top_p(), 0.9f);
  EXPECT_FLOAT_EQ(sampling.min_p(), 0.1f);
  EXPECT_EQ(sampling.seed(), UINT64_MAX);
  EXPECT_EQ(sampling.repetition_penalty(), 1.5f);
  EXPECT_EQ(sampling.presence_penalty(), -0.5f);
  EXPECT_EQ(sampling.frequency_penalty(), 0.25f);
  EXPECT_EQ(sampling.logit_bias().at(3), -2.5f);
  EXPECT_EQ(sampling.prompt_logprobs(), 2);
  const v1::StopConditions& stopping = request.stopping();
  ASSERT_EQ(stopping.stop_size(), 2);
  EXPECT_EQ(stopping.stop(0), "a b");
  EXPECT_EQ(stopping.stop_token_ids_size(), 2);
  EXPECT_EQ(stopping.min_tokens(), 1);
}

TEST(MoedctlTest, GenerateStreamsTextAndSummarizesOnStderr) {
  FakeServer server;
  server.responses = {DeltaOf(0, "Once ", {1}), DeltaOf(0, "upon", {2}),
                      FinishedOf(1, v1::FINISH_REASON_STOP)};
  const Outcome outcome = Moedctl(server, {"generate", "--prompt", "x"});
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_EQ(outcome.out, "Once upon\n");
  EXPECT_EQ(outcome.err.rfind("3 + 2 tokens", 0), 0u) << outcome.err;
}

TEST(MoedctlTest, FailureNamesTheStatusOnStderrAndPrintsNoJson) {
  FakeServer server;
  server.end = grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "prompt too long");
  const Outcome outcome = Moedctl(server, {"generate", "--prompt", "x", "--json"});
  EXPECT_NE(outcome.exit_code, 0);
  EXPECT_EQ(outcome.out, "");
  EXPECT_EQ(outcome.err, "INVALID_ARGUMENT: prompt too long\n");
}

TEST(MoedctlTest, ATimeoutIsTheStatusDeadlineExceeded) {
  FakeServer server;
  server.hang = true;
  const Outcome outcome = Moedctl(server, {"--timeout", "0.05", "generate", "--prompt", "x"});
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_EQ(outcome.err.rfind("DEADLINE_EXCEEDED", 0), 0u) << outcome.err;
}

TEST(MoedctlTest, BadArgumentsAreRefusedBeforeAnyCall) {
  FakeServer server;
  const std::vector<std::vector<const char*>> cases = {
      {},
      {"nonsense"},
      {"generate", "--prompt", "x", "--top-k", "many"},
      {"generate", "--prompt", "x", "--prompt-tokens", "1"},
      {"generate", "--prompt-tokens", "1,x"},
      {"generate", "--prompt", "x", "--logit-bias", "oops"},
      {"bench", "--rate", "-1"},
      {"bench", "--rate", "1", "--concurrency", "2"},
      {"bench", "--prompt-tokens", "5:1"},
      {"top", "--interval", "0"}};
  for (const auto& arguments : cases) {
    EXPECT_NE(Moedctl(server, arguments).exit_code, 0);
  }
  EXPECT_EQ(server.generate_count, 0);
}

TEST(MoedctlTest, HealthSucceedsOnlyWhenServing) {
  FakeServer server;
  server.health.set_status(HealthCheckResponse::SERVING);
  EXPECT_EQ(Moedctl(server, {"health"}).exit_code, 0);
  EXPECT_EQ(Moedctl(server, {"health"}).out, "SERVING\n");
  server.health.set_status(HealthCheckResponse::NOT_SERVING);
  const Outcome outcome = Moedctl(server, {"health", "--wait", "0.3"});
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_EQ(outcome.out, "NOT_SERVING\n");
}

TEST(MoedctlTest, InfoAndExpertsPrintForPeopleAndAsJson) {
  FakeServer server;
  server.model.set_model("demo");
  server.model.set_family("qwen3_moe");
  server.stats.set_policy("lru");
  v1::LayerStats* layer = server.stats.add_layers();
  layer->set_hits_total(3);
  layer->set_misses_total(1);
  for (const int tokens : {1, 0, 3}) {
    layer->add_expert_tokens_total(tokens);
    layer->add_expert_resident(tokens > 0);
  }
  EXPECT_NE(Moedctl(server, {"info"}).out.find("demo (qwen3_moe)"), std::string::npos);
  EXPECT_EQ(nlohmann::json::parse(Moedctl(server, {"info", "--json"}).out)["family"], "qwen3_moe");
  EXPECT_NE(Moedctl(server, {"experts", "--top", "2"}).out.find("   2* 75.0 %     0* 25.0 %\n"),
            std::string::npos);
  EXPECT_EQ(nlohmann::json::parse(Moedctl(server, {"experts", "--json"}).out)["policy"], "lru");
}

TEST(MoedctlTest, TopOncePrintsAFrameWithoutEscapes) {
  FakeServer server;
  server.stats.set_model("demo");
  const Outcome outcome = Moedctl(server, {"top", "--once"});
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_EQ(outcome.out.rfind("demo  up 0 s", 0), 0u);
  EXPECT_EQ(outcome.out.find('\x1b'), std::string::npos);
}

TEST(MoedctlTest, BenchReportsAsJson) {
  FakeServer server;
  server.model.set_vocab_size(100);
  server.responses = {DeltaOf(0, "", {1}), DeltaOf(0, "", {2}),
                      FinishedOf(1, v1::FINISH_REASON_LENGTH)};
  const Outcome outcome =
      Moedctl(server, {"bench", "--rate", "2000", "--requests", "30", "--prompt-tokens", "2:4",
                       "--output-tokens", "2", "--json"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  const nlohmann::json json = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(json["succeeded"], 30);
  EXPECT_EQ(json["completion_tokens"], 60);
  EXPECT_EQ(json["inter_token"]["count"], 30);
}

}  // namespace
}  // namespace moed::client
