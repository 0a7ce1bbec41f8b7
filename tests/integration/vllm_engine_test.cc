// vllm.grpc.engine.VllmEngine over a socket, beside moed.v1 on the same engine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "proto/vllm/engine.grpc.pb.h"
#include "server/model_host.h"
#include "tests/integration/scripted_runner.h"
#include "tests/integration/test_server.h"

namespace moed::server {
namespace {

namespace vllm_api = vllm::grpc::engine;
using grpc::StatusCode;
using grpc::health::v1::HealthCheckResponse;

struct Outcome {
  grpc::Status status;
  std::vector<std::vector<uint32_t>> streamed;  // by sequence
  std::vector<vllm_api::GenerateComplete> completes;
};

Outcome Generate(vllm_api::VllmEngine::Stub& stub, const vllm_api::GenerateRequest& request) {
  grpc::ClientContext context;
  const auto reader = stub.Generate(&context, request);
  Outcome outcome;
  vllm_api::GenerateResponse response;
  while (reader->Read(&response)) {
    if (response.has_complete()) {
      outcome.completes.push_back(response.complete());
      continue;
    }
    const vllm_api::GenerateStreamChunk& chunk = response.chunk();
    outcome.streamed.resize(std::max<size_t>(outcome.streamed.size(), chunk.index() + 1));
    EXPECT_EQ(chunk.completion_tokens(), static_cast<uint32_t>(chunk.token_ids_size()));
    for (uint32_t id : chunk.token_ids()) outcome.streamed[chunk.index()].push_back(id);
  }
  outcome.status = reader->Finish();
  return outcome;
}

vllm_api::GenerateRequest Request(int prompt_tokens, uint32_t max_tokens) {
  vllm_api::GenerateRequest request;
  for (int i = 0; i < prompt_tokens; ++i) {
    request.mutable_tokenized()->add_input_ids(1 + i % 100);
  }
  request.mutable_sampling_params()->set_temperature(0);
  request.mutable_sampling_params()->set_max_tokens(max_tokens);
  request.mutable_sampling_params()->set_ignore_eos(true);
  request.set_stream(true);
  return request;
}

class VllmEngineTest : public testing::Test {
 protected:
  VllmEngineTest()
      : server_({}, ScriptedLoader(&runner_)),
        stub_(vllm_api::VllmEngine::NewStub(server_.NewChannel())) {
    server_.WaitUntilLoaded();
  }

  ScriptedRunner* runner_ = nullptr;
  TestServer server_;
  std::unique_ptr<vllm_api::VllmEngine::Stub> stub_;
};

TEST_F(VllmEngineTest, StreamsTheTokensOfTheNativeApi) {
  const StreamOutcome native = server::Generate(server_.inference(), TokensRequest(5, 40));
  const Outcome outcome = Generate(*stub_, Request(5, 40));
  ASSERT_TRUE(outcome.status.ok()) << outcome.status.error_message();
  ASSERT_EQ(outcome.streamed.size(), 1u);
  EXPECT_TRUE(std::equal(native.tokens.begin(), native.tokens.end(), outcome.streamed[0].begin(),
                         outcome.streamed[0].end()));
  ASSERT_EQ(outcome.completes.size(), 1u);
  EXPECT_EQ(outcome.completes[0].finish_reason(), "length");
  EXPECT_EQ(outcome.completes[0].prompt_tokens(), 5u);
  EXPECT_EQ(outcome.completes[0].completion_tokens(), 40u);
}

TEST_F(VllmEngineTest, EachOfNSequencesHasItsComplete) {
  vllm_api::GenerateRequest request = Request(5, 10);
  request.mutable_sampling_params()->set_n(3);
  for (bool stream : {true, false}) {
    request.set_stream(stream);
    const Outcome outcome = Generate(*stub_, request);
    ASSERT_TRUE(outcome.status.ok()) << outcome.status.error_message();
    EXPECT_EQ(outcome.streamed.size(), stream ? 3u : 0u);
    std::set<uint32_t> indices;
    for (const vllm_api::GenerateComplete& complete : outcome.completes) {
      indices.insert(complete.index());
      EXPECT_EQ(complete.completion_tokens(), 10u);
      EXPECT_EQ(complete.output_ids_size(), stream ? 0 : 10);
    }
    EXPECT_EQ(indices.size(), 3u);
  }
}

TEST_F(VllmEngineTest, AbortEndsARequestOfAnotherCall) {
  vllm_api::GenerateRequest request = Request(5, 1'000'000);
  request.set_request_id("victim");
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, request);
  vllm_api::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  vllm_api::AbortRequest abort;
  abort.add_request_ids("victim");
  abort.add_request_ids("never heard of");
  grpc::ClientContext abort_context;
  vllm_api::AbortResponse aborted;
  EXPECT_TRUE(stub_->Abort(&abort_context, abort, &aborted).ok());
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually([&] { return server_.Stats().running() == 0; }));
}

TEST_F(VllmEngineTest, LoadsAndInfoTellWhatRuns) {
  runner_->SetGate(false);
  grpc::ClientContext running_context;
  const auto running = stub_->Generate(&running_context, Request(20, 5));
  EXPECT_TRUE(Eventually([&] {
    grpc::ClientContext context;
    vllm_api::GetLoadsResponse loads;
    return stub_->GetLoads(&context, {}, &loads).ok() && loads.loads_size() == 1 &&
           loads.loads(0).num_total_reqs() == 1;
  }));
  runner_->SetGate(true);
  grpc::ClientContext info_context;
  vllm_api::GetServerInfoResponse info;
  EXPECT_TRUE(stub_->GetServerInfo(&info_context, {}, &info).ok());
  EXPECT_EQ(info.data_parallel_size(), 1);
  grpc::ClientContext model_context;
  vllm_api::GetModelInfoResponse model;
  EXPECT_TRUE(stub_->GetModelInfo(&model_context, {}, &model).ok());
  EXPECT_EQ(model.served_model_name(), "scripted");
  EXPECT_TRUE(model.is_generation());
  EXPECT_EQ(model.vocab_size(), 1024u);
}

TEST_F(VllmEngineTest, HealthFollowsTheDrain) {
  const auto healthy = [this] {
    grpc::ClientContext context;
    vllm_api::HealthCheckResponse response;
    return stub_->HealthCheck(&context, {}, &response).ok() && response.healthy();
  };
  const std::string literal = "/vllm.grpc.engine.VllmEngine/HealthCheck";
  EXPECT_TRUE(Eventually(healthy));
  EXPECT_EQ(server_.HealthOf(literal), HealthCheckResponse::SERVING);
  runner_->SetGate(false);
  grpc::ClientContext context;
  const auto running = stub_->Generate(&context, Request(5, 5));
  EXPECT_TRUE(
      Eventually([&] { return server_.Stats().waiting() + server_.Stats().running() == 1; }));
  server_.RequestStop();
  EXPECT_TRUE(Eventually([&] { return !healthy(); }));
  EXPECT_EQ(server_.HealthOf(literal), HealthCheckResponse::NOT_SERVING);
  runner_->SetGate(true);
}

TEST(VllmEngineTokenizerTest, GetTokenizerStreamsAZipOfTheDemoModel) {
  Options options;
  options.model = MOED_DEMO_MODEL;
  options.cpu_threads = 1;
  options.kv_cache_bytes = 16 << 20;
  TestServer server(options, LoadModel);
  server.WaitUntilLoaded();
  const auto stub = vllm_api::VllmEngine::NewStub(server.NewChannel());
  grpc::ClientContext context;
  const auto reader = stub->GetTokenizer(&context, {});
  std::string zip;
  smg::grpc::common::GetTokenizerChunk chunk;
  int chunks = 0;
  while (reader->Read(&chunk)) {
    EXPECT_LE(chunk.data().size(), size_t{64} << 10);
    zip += chunk.data();
    ++chunks;
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_GT(chunks, 1);
  EXPECT_EQ(chunk.sha256().size(), 64u);
  EXPECT_EQ(zip.substr(0, 4), "PK\x03\x04");
  EXPECT_THAT(zip, testing::HasSubstr("tokenizer_config.json"));
}

}  // namespace
}  // namespace moed::server
