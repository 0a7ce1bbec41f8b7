// Generation as a client sees it: streams, single answers, cancel, deadline, bad input.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/integration/scripted_runner.h"
#include "tests/integration/test_server.h"

namespace moed::server {
namespace {

using grpc::StatusCode;
using testing::HasSubstr;

class StreamingTest : public testing::Test {
 protected:
  StreamingTest() : server_({}, ScriptedLoader(&runner_)) { server_.WaitUntilLoaded(); }

  bool EngineIdle() {
    const v1::ServingStats stats = server_.Stats();
    return stats.running() == 0 && stats.waiting() == 0 && stats.kv_usage() == 0;
  }

  ScriptedRunner* runner_ = nullptr;
  TestServer server_;
};

TEST_F(StreamingTest, StreamsTokensThenUsage) {
  const StreamOutcome outcome = Generate(server_.inference(), TokensRequest(5, 7));
  ASSERT_TRUE(outcome.status.ok()) << outcome.status.error_message();
  std::vector<int32_t> expected;
  for (int64_t i = 0; i < 7; ++i) expected.push_back(ScriptedRunner::TokenAfter(5 + i));
  EXPECT_EQ(outcome.tokens, expected);
  ASSERT_EQ(outcome.finished.sequences_size(), 1);
  EXPECT_EQ(outcome.finished.sequences(0).reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(outcome.finished.usage().prompt_tokens(), 5);
  EXPECT_EQ(outcome.finished.usage().completion_tokens(), 7);
}

TEST_F(StreamingTest, OnceGivesWhatTheStreamGives) {
  v1::GenerateRequest request = TokensRequest(3, 20);
  request.set_n(2);
  request.set_request_id("mine");
  grpc::ClientContext context;
  v1::GenerateOnceResponse response;
  const grpc::Status status = server_.inference().GenerateOnce(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.request_id(), "mine");
  ASSERT_EQ(response.completions_size(), 2);
  EXPECT_EQ(response.usage().completion_tokens(), 40);
  const StreamOutcome streamed = Generate(server_.inference(), request);
  for (const v1::Completion& completion : response.completions()) {
    std::vector<int32_t> tokens;
    for (const v1::Token& token : completion.tokens()) tokens.push_back(token.id());
    EXPECT_EQ(tokens, streamed.tokens);
    EXPECT_EQ(completion.finish().reason(), v1::FINISH_REASON_LENGTH);
  }
}

TEST_F(StreamingTest, CancelFreesWhatTheRequestHeld) {
  grpc::ClientContext context;
  auto reader = server_.inference().Generate(&context, TokensRequest(5, 1'000'000));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  context.TryCancel();
  EXPECT_EQ(ReadStream(*reader).status.error_code(), StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually([this] { return EngineIdle(); }));
}

// Whether the write under way fails first, or the call is cancelled first, is the transport's whim.
TEST_F(StreamingTest, CallsThatEndWhileTheyAreWrittenToFreeWhatTheyHeld) {
  for (int round = 0; round < 60; ++round) {
    grpc::ClientContext context;
    auto reader = server_.inference().Generate(&context, TokensRequest(5, 1'000'000));
    v1::GenerateResponse response;
    for (int i = 0; i <= round % 4; ++i) ASSERT_TRUE(reader->Read(&response));
    context.TryCancel();
    EXPECT_FALSE(reader->Finish().ok());
  }
  EXPECT_TRUE(Eventually([this] { return EngineIdle(); }));
}

TEST_F(StreamingTest, CancelWhileQueuedOrMidStep) {
  runner_->SetGate(false);
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>>> readers;
  for (int i = 0; i < 100; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(server_.inference().Generate(contexts.back().get(), TokensRequest(5, 100)));
  }
  EXPECT_TRUE(Eventually([this] {
    const v1::ServingStats stats = server_.Stats();
    return stats.running() + stats.waiting() == 100;
  }));
  for (auto& context : contexts) context->TryCancel();
  for (auto& reader : readers) {
    EXPECT_EQ(reader->Finish().error_code(), StatusCode::CANCELLED);
  }
  runner_->SetGate(true);
  EXPECT_TRUE(Eventually([this] { return EngineIdle(); }));
  EXPECT_TRUE(Generate(server_.inference(), TokensRequest(2, 2)).status.ok());
}

TEST_F(StreamingTest, DeadlineEndsTheWork) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(300));
  auto reader = server_.inference().Generate(&context, TokensRequest(5, 1'000'000));
  EXPECT_EQ(ReadStream(*reader).status.error_code(), StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(Eventually([this] { return EngineIdle(); }));
}

TEST_F(StreamingTest, RequestIdsInUseAreRefusedWithoutHarmToTheFirst) {
  runner_->SetGate(false);
  v1::GenerateRequest request = TokensRequest(5, 10);
  request.set_request_id("same");
  grpc::ClientContext context;
  auto first = server_.inference().Generate(&context, request);
  EXPECT_TRUE(Eventually([this] {
    const v1::ServingStats stats = server_.Stats();
    return stats.running() + stats.waiting() == 1;
  }));
  const StreamOutcome second = Generate(server_.inference(), request);
  EXPECT_FALSE(second.status.ok());
  EXPECT_THAT(second.status.error_message(), HasSubstr("same"));
  runner_->SetGate(true);
  EXPECT_EQ(ReadStream(*first).tokens.size(), 10u);
}

TEST_F(StreamingTest, BadInputGetsItsTypedErrorAndTheServerServesOn) {
  v1::GenerateRequest no_prompt;
  v1::GenerateRequest other_model = TokensRequest(1, 1);
  other_model.set_model("gpt-17");
  v1::GenerateRequest text;
  text.set_text("needs a tokenizer");
  v1::GenerateRequest not_a_number = TokensRequest(1, 1);
  not_a_number.mutable_sampling()->set_top_p(std::nanf(""));
  v1::GenerateRequest unknown_token = TokensRequest(1, 1);
  unknown_token.mutable_tokens()->add_ids(1 << 30);
  const struct {
    const v1::GenerateRequest& request;
    StatusCode code;
    const char* message;
  } cases[] = {
      {no_prompt, StatusCode::INVALID_ARGUMENT, "prompt"},
      {other_model, StatusCode::NOT_FOUND, "\"scripted\""},
      {text, StatusCode::FAILED_PRECONDITION, "tokenizer.json"},
      {not_a_number, StatusCode::INVALID_ARGUMENT, "sampling.top_p"},
      {unknown_token, StatusCode::INVALID_ARGUMENT, "1073741824"},
      {TokensRequest(1 << 20, 1), StatusCode::INVALID_ARGUMENT, "1048576"},
  };
  for (const auto& [request, code, message] : cases) {
    const grpc::Status streamed = Generate(server_.inference(), request).status;
    EXPECT_EQ(streamed.error_code(), code) << message;
    EXPECT_THAT(streamed.error_message(), HasSubstr(message));
    grpc::ClientContext context;
    v1::GenerateOnceResponse response;
    const grpc::Status once = server_.inference().GenerateOnce(&context, request, &response);
    EXPECT_EQ(once.error_code(), code) << message;
  }
  EXPECT_TRUE(Generate(server_.inference(), TokensRequest(2, 2)).status.ok());
}

TEST_F(StreamingTest, EngineFailureReachesClientsWithoutItsCause) {
  runner_->SetGate(false);
  grpc::ClientContext context;
  auto reader = server_.inference().Generate(&context, TokensRequest(5, 100));
  runner_->FailWith(absl::DataLossError("/secret/path/model.safetensors is short"));
  runner_->SetGate(true);
  const grpc::Status status = ReadStream(*reader).status;
  EXPECT_THAT(status.error_code(), testing::AnyOf(StatusCode::UNAVAILABLE, StatusCode::INTERNAL));
  EXPECT_THAT(status.error_message(), testing::Not(HasSubstr("/")));
  EXPECT_TRUE(absl::IsUnavailable(server_.Stop()));
}

}  // namespace
}  // namespace moed::server
