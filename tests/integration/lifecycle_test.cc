// Start, loading, drain, failure of one server inside the test.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/integration/scripted_runner.h"
#include "tests/integration/test_server.h"

namespace moed::server {
namespace {

using grpc::StatusCode;
using grpc::health::v1::HealthCheckResponse;
using testing::HasSubstr;

constexpr char kInference[] = "moed.v1.Inference";

TEST(LifecycleTest, ListensWhileLoadingAndBecomesReady) {
  ScriptedRunner* runner = nullptr;
  absl::Notification finish_loading;
  TestServer server({}, [&, load = ScriptedLoader(&runner)](const Options& options) {
    finish_loading.WaitForNotification();
    return load(options);
  });
  EXPECT_EQ(server.HealthOf(""), HealthCheckResponse::SERVING);
  EXPECT_EQ(server.HealthOf(kInference), HealthCheckResponse::NOT_SERVING);
  const grpc::Status status = Generate(server.inference(), TokensRequest(1, 1)).status;
  EXPECT_EQ(status.error_code(), StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("loading"));
  EXPECT_EQ(HttpGet(server.metrics_port(), "/metrics").find("moed_steps_total"), std::string::npos);

  grpc::ClientContext context;
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(kInference);
  auto watch = server.health().Watch(&context, request);
  HealthCheckResponse response;
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  finish_loading.Notify();
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  context.TryCancel();
  EXPECT_TRUE(Generate(server.inference(), TokensRequest(1, 1)).status.ok());
}

TEST(LifecycleTest, LoadErrorEndsTheServerWithIt) {
  TestServer server({}, [](const Options&) -> absl::StatusOr<std::unique_ptr<ServedModel>> {
    return absl::DataLossError("model.safetensors is cut short");
  });
  EXPECT_TRUE(Eventually([&] { return server.HealthOf("") == HealthCheckResponse::UNKNOWN; }));
  EXPECT_TRUE(absl::IsDataLoss(server.Stop()));
}

TEST(LifecycleTest, DrainFinishesWhatRunsAndRefusesWhatComes) {
  ScriptedRunner* runner = nullptr;
  TestServer server({}, ScriptedLoader(&runner));
  server.WaitUntilLoaded();
  EXPECT_TRUE(
      Eventually([&] { return server.HealthOf(kInference) == HealthCheckResponse::SERVING; }));
  runner->SetGate(false);
  grpc::ClientContext context;
  auto running = server.inference().Generate(&context, TokensRequest(5, 50));
  EXPECT_TRUE(Eventually([&] { return server.Stats().running() + server.Stats().waiting() == 1; }));
  server.RequestStop();
  EXPECT_TRUE(
      Eventually([&] { return server.HealthOf(kInference) == HealthCheckResponse::NOT_SERVING; }));
  EXPECT_TRUE(Eventually([&] {
    return Generate(server.inference(), TokensRequest(1, 1)).status.error_code() ==
           StatusCode::UNAVAILABLE;
  }));
  runner->SetGate(true);
  const StreamOutcome outcome = ReadStream(*running);
  EXPECT_TRUE(outcome.status.ok()) << outcome.status.error_message();
  EXPECT_EQ(outcome.tokens.size(), 50u);
  EXPECT_TRUE(server.Stop().ok());
}

TEST(LifecycleTest, DrainCancelsWhatOutlastsIt) {
  ScriptedRunner* runner = nullptr;
  Options options;
  options.drain_seconds = 0.1;
  TestServer server(options, ScriptedLoader(&runner));
  server.WaitUntilLoaded();
  runner->SetStepTime(absl::Milliseconds(1));
  grpc::ClientContext context;
  auto endless = server.inference().Generate(&context, TokensRequest(5, 1'000'000));
  std::thread reader([&] { EXPECT_FALSE(ReadStream(*endless).status.ok()); });
  EXPECT_TRUE(Eventually([&] { return server.Stats().running() == 1; }));
  EXPECT_TRUE(server.Stop().ok());
  reader.join();
}

TEST(LifecycleTest, AConnectionThatIsToldToGoEndsItsCallsInPeace) {
  ScriptedRunner* runner = nullptr;
  Options options;
  options.max_connection_age_seconds = 0.3;
  TestServer server(options, ScriptedLoader(&runner));
  server.WaitUntilLoaded();
  runner->SetStepTime(absl::Milliseconds(10));
  const auto channel = server.NewChannel();
  const auto stub = v1::Inference::NewStub(channel);
  const StreamOutcome outcome = Generate(*stub, TokensRequest(5, 150));  // five ages long
  EXPECT_TRUE(outcome.status.ok()) << outcome.status.error_message();
  EXPECT_EQ(outcome.tokens.size(), 150u);
  // It went with its last call; the next makes another.
  EXPECT_TRUE(Eventually([&] { return channel->GetState(false) == GRPC_CHANNEL_IDLE; }));
  EXPECT_TRUE(Generate(*stub, TokensRequest(5, 1)).status.ok());
}

TEST(LifecycleTest, PortInUseIsAnErrorThatNamesTheFlag) {
  ScriptedRunner* runner = nullptr;
  TestServer first({}, ScriptedLoader(&runner));
  Options options;
  options.port = first.port();
  options.metrics_port = 0;
  const auto same_port = Server::Create(options, ScriptedLoader(&runner));
  EXPECT_TRUE(absl::IsUnavailable(same_port.status()));
  EXPECT_THAT(std::string(same_port.status().message()),
              testing::AllOf(HasSubstr(absl::StrCat(first.port())), HasSubstr("--port")));
  options.port = 0;
  options.metrics_port = first.metrics_port();
  const auto same_metrics_port = Server::Create(options, ScriptedLoader(&runner));
  EXPECT_TRUE(absl::IsUnavailable(same_metrics_port.status()));
  EXPECT_THAT(std::string(same_metrics_port.status().message()), HasSubstr("--metrics-port"));
}

}  // namespace
}  // namespace moed::server
