// What operators see: health, reflection, metrics, expert statistics.
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/integration/scripted_runner.h"
#include "tests/integration/test_server.h"

namespace moed::server {
namespace {

using grpc::StatusCode;
using testing::HasSubstr;

class ObservabilityTest : public testing::Test {
 protected:
  ObservabilityTest() : server_({}, ScriptedLoader(&runner_)) { server_.WaitUntilLoaded(); }

  ScriptedRunner* runner_ = nullptr;
  TestServer server_;
};

TEST_F(ObservabilityTest, UnknownServiceHasNoHealth) {
  grpc::ClientContext context;
  grpc::health::v1::HealthCheckRequest request;
  request.set_service("no.such.Service");
  grpc::health::v1::HealthCheckResponse response;
  EXPECT_EQ(server_.health().Check(&context, request, &response).error_code(),
            StatusCode::NOT_FOUND);
}

TEST_F(ObservabilityTest, MetricsCountWhatWasServed) {
  ASSERT_TRUE(Generate(server_.inference(), TokensRequest(5, 7)).status.ok());
  Generate(server_.inference(), v1::GenerateRequest());
  const std::string text = HttpGet(server_.metrics_port(), "/metrics");
  for (const char* line :
       {"moed_prompt_tokens_total{model_name=\"scripted\"} 5",
        "moed_generation_tokens_total{model_name=\"scripted\"} 7",
        "moed_generate_calls_total{code=\"OK\",model_name=\"scripted\"} 1",
        "moed_generate_calls_total{code=\"INVALID_ARGUMENT\",model_name=\"scripted\"} 1",
        "moed_requests_finished_total{finished_reason=\"length\",model_name=\"scripted\"} 1",
        "moed_time_to_first_token_seconds_count{model_name=\"scripted\"} 1",
        "moed_inter_token_latency_seconds_count{model_name=\"scripted\"} 6",
        "vllm:num_requests_running{model_name=\"scripted\"} 0",
        "vllm:num_requests_waiting{model_name=\"scripted\"} 0",
        "vllm:kv_cache_usage_perc{model_name=\"scripted\"} 0", "vllm:cache_config_info{"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

TEST_F(ObservabilityTest, StatusPageIsWholeInItself) {
  const std::string page = HttpGet(server_.metrics_port(), "/");
  EXPECT_THAT(page, HasSubstr("<title>moed</title>"));
  EXPECT_THAT(page, HasSubstr("</html>"));
  for (const char* foreign : {"http://", "https://", "src="}) {
    EXPECT_THAT(page, testing::Not(HasSubstr(foreign)));
  }
  EXPECT_THAT(HttpGet(server_.metrics_port(), "/status.json"), HasSubstr("\"loading\":false"));
}

TEST_F(ObservabilityTest, MetricsComePackedToWhoTakesThemSo) {
  const std::string get = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
  const std::string packed =
      HttpAnswer(server_.metrics_port(), get + "Accept-Encoding: gzip\r\n\r\n");
  EXPECT_THAT(packed, HasSubstr("\r\nContent-Encoding: gzip\r\n"));
  EXPECT_THAT(packed, HasSubstr("\r\n\r\n\x1f\x8b"));
  const std::string plain = HttpAnswer(server_.metrics_port(), get + "\r\n");
  EXPECT_THAT(plain, testing::Not(HasSubstr("Content-Encoding")));
  EXPECT_LT(packed.size(), plain.size() / 3);
}

TEST_F(ObservabilityTest, SeriesDoNotGrowWithRequests) {
  const auto serve = [this] {
    for (int i = 0; i < 50; ++i) Generate(server_.inference(), TokensRequest(1 + i, 1 + i % 7));
    const std::string text = HttpGet(server_.metrics_port(), "/metrics");
    return std::count(text.begin(), text.end(), '\n');
  };
  const auto before = serve();
  EXPECT_GT(before, 10);
  EXPECT_EQ(serve(), before);
}

TEST_F(ObservabilityTest, WatchSendsAgainAndAgain) {
  grpc::ClientContext context;
  v1::WatchExpertsRequest request;
  request.set_interval_seconds(0.1);
  auto watch = server_.experts().Watch(&context, request);
  v1::ExpertStats first, second;
  ASSERT_TRUE(watch->Read(&first));
  ASSERT_TRUE(watch->Read(&second));
  EXPECT_EQ(second.model(), "scripted");
  EXPECT_GT(second.serving().uptime_seconds(), first.serving().uptime_seconds());
  context.TryCancel();
  EXPECT_EQ(watch->Finish().error_code(), StatusCode::CANCELLED);
}

TEST_F(ObservabilityTest, WatchRefusesBadIntervals) {
  for (double interval : {0.0, -1.0, 0.01, 61.0, std::nan(""), 1e300}) {
    grpc::ClientContext context;
    v1::WatchExpertsRequest request;
    request.set_interval_seconds(interval);
    EXPECT_EQ(server_.experts().Watch(&context, request)->Finish().error_code(),
              StatusCode::INVALID_ARGUMENT)
        << interval;
  }
}

// The request and what is looked for in the answer are short enough to need no generated code:
// ServerReflectionRequest.list_services is field 7.
TEST_F(ObservabilityTest, ReflectionListsTheServices) {
  grpc::GenericStub stub(server_.NewChannel());
  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  auto call = stub.PrepareCall(
      &context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  const auto wait = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  call->StartCall(nullptr);
  ASSERT_TRUE(wait());
  const grpc::Slice list_services(std::string("\x3a\x00", 2));
  call->WriteLast(grpc::ByteBuffer(&list_services, 1), grpc::WriteOptions(), nullptr);
  ASSERT_TRUE(wait());
  grpc::ByteBuffer answer;
  call->Read(&answer, nullptr);
  ASSERT_TRUE(wait());
  grpc::Slice bytes;
  ASSERT_TRUE(answer.DumpToSingleSlice(&bytes).ok());
  const std::string text(reinterpret_cast<const char*>(bytes.begin()), bytes.size());
  EXPECT_THAT(text, HasSubstr("moed.v1.Inference"));
  EXPECT_THAT(text, HasSubstr("moed.v1.Experts"));
  EXPECT_THAT(text, HasSubstr("grpc.health.v1.Health"));
  context.TryCancel();
  grpc::Status status;
  call->Finish(&status, nullptr);
  wait();
}

}  // namespace
}  // namespace moed::server
