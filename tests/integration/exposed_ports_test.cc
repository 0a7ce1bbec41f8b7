// What each port shows to those without a key, and how much the ports read.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "proto/vllm/engine.grpc.pb.h"
#include "server/method_access.h"
#include "tests/integration/security_fixture.h"

namespace moed::server {
namespace {

using grpc::StatusCode;
using grpc::health::v1::HealthCheckResponse;

class ExposedPortsTest : public SecurityTest {};

TEST_F(ExposedPortsTest, TheHealthPortShowsHealthAndNothingElse) {
  options_.health_port = 0;
  Start();
  const auto channel = ChannelTo(server_->health_port());
  const auto health = grpc::health::v1::Health::NewStub(channel);
  EXPECT_TRUE(Eventually([&] {
    grpc::ClientContext context;
    grpc::health::v1::HealthCheckRequest request;
    request.set_service("moed.v1.Inference");
    HealthCheckResponse response;
    return health->Check(&context, request, &response).ok() &&
           response.status() == HealthCheckResponse::SERVING;
  }));
  for (const MethodAccess& method : AllMethods()) {
    if (method.path.find("/grpc.health.") == 0) continue;
    EXPECT_EQ(CallOf(channel, std::string(method.path)), StatusCode::UNIMPLEMENTED) << method.path;
  }
}

TEST_F(ExposedPortsTest, TheGatewayPortServesTheEngineProtocolAlone) {
  UseKeys();
  options_.gateway_port = 0;
  Start();
  const auto channel = ChannelTo(server_->gateway_port());
  const auto stub = vllm::grpc::engine::VllmEngine::NewStub(channel);
  grpc::ClientContext context;
  vllm::grpc::engine::GetModelInfoResponse response;
  EXPECT_TRUE(stub->GetModelInfo(&context, {}, &response).ok());
  for (const MethodAccess& method : AllMethods()) {
    if (method.path.find("/moed.") != 0 && method.path.find("/grpc.reflection.") != 0) continue;
    EXPECT_EQ(CallOf(channel, std::string(method.path)), StatusCode::UNIMPLEMENTED) << method.path;
  }
}

// "GET PATH" with further header lines, each with its end.
std::string GetWith(const std::string& path, const std::string& headers) {
  return absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: localhost\r\n", headers,
                      "Connection: close\r\n\r\n");
}

TEST_F(ExposedPortsTest, MetricsAskForAUserOnEveryPath) {
  options_.metrics_auth_file = testing::TempDir() + "/users";
  // By `printf %s a-password-of-length | sha256sum`.
  WriteFile(options_.metrics_auth_file,
            "prometheus:d849daf8b0aa9f10be3818bc2faecbf90a82eb8221d4c8adac7d5e963db0d5e8\n");
  Start();
  const auto answer = [this](const std::string& path, const std::string& headers) {
    return HttpAnswer(server_->metrics_port(), GetWith(path, headers));
  };
  // prometheus:a-password-of-length, and with another password.
  const std::string good = "Authorization: Basic cHJvbWV0aGV1czphLXBhc3N3b3JkLW9mLWxlbmd0aA==\r\n";
  const std::string bad = "Authorization: Basic cHJvbWV0aGV1czphLXBhc3N3b3JkLW9mLWxlbmd0SA==\r\n";
  for (const char* path : {"/", "/metrics", "/metrics/experts", "/status.json", "/no/such/path"}) {
    EXPECT_THAT(answer(path, ""), testing::StartsWith("HTTP/1.1 401 ")) << path;
    EXPECT_THAT(answer(path, ""), testing::HasSubstr("WWW-Authenticate: Basic")) << path;
    EXPECT_THAT(answer(path, bad), testing::StartsWith("HTTP/1.1 401 ")) << path;
    EXPECT_THAT(answer(path, good), testing::Not(testing::StartsWith("HTTP/1.1 401 "))) << path;
  }
  EXPECT_THAT(answer("/metrics", good), testing::StartsWith("HTTP/1.1 200 "));
}

TEST_F(ExposedPortsTest, TheMetricsPortLimitsWhatItReads) {
  Start();
  const int port = server_->metrics_port();
  const std::string large = absl::StrCat("X-Large: ", std::string(20'000, 'a'), "\r\n");
  EXPECT_THAT(HttpAnswer(port, GetWith("/metrics", large)),
              testing::Not(testing::HasSubstr(" 200 ")));
  EXPECT_THAT(HttpAnswer(port, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"),
              testing::StartsWith("HTTP/1.1 405 "));
  EXPECT_THAT(HttpAnswer(port, GetWith("/../../etc/passwd", "")),
              testing::Not(testing::HasSubstr("root:")));
  EXPECT_THAT(HttpAnswer(port, GetWith("/metrics", "")), testing::StartsWith("HTTP/1.1 200 "));
}

TEST_F(ExposedPortsTest, OversizedMessagesAreRefused) {
  options_.max_message_bytes = 64 << 10;
  Start();
  const auto stub = v1::Inference::NewStub(server_->NewChannel(Channel()));
  EXPECT_EQ(Generate(*stub, TokensRequest(100'000, 1)).status.error_code(),
            StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(Generate(*stub, TokensRequest(100, 1)).status.ok());
}

TEST_F(ExposedPortsTest, OversizedMetadataIsRefused) {
  Start();
  const auto stub = v1::Inference::NewStub(server_->NewChannel(Channel()));
  grpc::ClientContext context;
  context.AddMetadata("x-large", std::string(40 << 10, 'a'));
  v1::GetModelResponse response;
  EXPECT_EQ(stub->GetModel(&context, {}, &response).error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(Ask(Channel()).ok());
}

}  // namespace
}  // namespace moed::server
