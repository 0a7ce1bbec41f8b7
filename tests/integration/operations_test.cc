// Running the daemon: checking a configuration, reloading, systemd, and what must never be seen.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <csignal>
#include <cstdio>
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/integration/daemon_process.h"
#include "tests/integration/test_server.h"

namespace moed::server {
namespace {

using grpc::StatusCode;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

struct Finished {
  int exit_code = 0;
  std::string output;
};

// The daemon with arguments that make it leave by itself.
Finished RunDaemon(const std::string& arguments) {
  FILE* pipe = popen(absl::StrCat(MOED_BINARY, " ", arguments, " 2>&1").c_str(), "r");
  Finished finished;
  std::array<char, 512> buffer;
  while (std::fgets(buffer.data(), buffer.size(), pipe) != nullptr)
    finished.output += buffer.data();
  finished.exit_code = WEXITSTATUS(pclose(pipe));
  return finished;
}

void Write(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

TEST(OperationsTest, CheckConfigSaysWhatIsWrongWithoutStarting) {
  const Finished good = RunDaemon("--check-config");
  EXPECT_EQ(good.exit_code, 0) << good.output;
  EXPECT_THAT(good.output, HasSubstr("checkpoint: ok"));
  const std::string keys = testing::TempDir() + "/bad-keys";
  Write(keys, "short\n");
  const Finished bad = RunDaemon(
      absl::StrCat("--check-config --tls-cert=/no/cert --tls-key=/no/key --api-key-file=", keys));
  EXPECT_EQ(bad.exit_code, 1);
  EXPECT_THAT(bad.output, AllOf(HasSubstr("certificates: /no/cert"), HasSubstr("line 1")));
}

TEST(OperationsTest, DoctorLooksAtMachineAndModel) {
  const Finished good = RunDaemon("doctor");
  EXPECT_EQ(good.exit_code, 0) << good.output;
  EXPECT_THAT(good.output, AllOf(HasSubstr("locked memory"), HasSubstr("ok       fit")));
  EXPECT_EQ(RunDaemon("doctor --model /no/such/model").exit_code, 1);
}

TEST(OperationsTest, KeysBeyondLoopbackNeedTls) {
  const std::string keys = testing::TempDir() + "/loopback-keys";
  Write(keys, "0123456789abcdef\n");
  const Finished refused =
      RunDaemon(absl::StrCat("--host=0.0.0.0 --port=0 --metrics-port=0 --api-key-file=", keys));
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.output, AllOf(HasSubstr("needs TLS"), HasSubstr("--tls-cert")));
}

StatusCode AskWithKey(const std::string& address, const std::string& key) {
  const auto stub =
      v1::Inference::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  if (!key.empty()) context.AddMetadata("authorization", "Bearer " + key);
  v1::GetModelResponse response;
  return stub->GetModel(&context, {}, &response).error_code();
}

TEST(OperationsTest, SighupReadsKeysAndLogLevelAgain) {
  const std::string keys = testing::TempDir() + "/sighup-keys";
  const std::string config = testing::TempDir() + "/sighup.toml";
  Write(keys, "0123456789abcdef\n");
  Write(config, absl::StrCat("api-key-file = \"", keys, "\"\nlog-level = \"warn\"\n"));
  DaemonProcess daemon({"--config=" + config});
  const std::string address = daemon.WaitUntilListening();
  EXPECT_TRUE(
      Eventually([&] { return AskWithKey(address, "0123456789abcdef") == StatusCode::OK; }));
  EXPECT_EQ(AskWithKey(address, ""), StatusCode::UNAUTHENTICATED);
  Write(keys, "fedcba9876543210\n");
  Write(config, absl::StrCat("api-key-file = \"", keys, "\"\nlog-level = \"debug\"\n"));
  daemon.Signal(SIGHUP);
  EXPECT_TRUE(
      Eventually([&] { return AskWithKey(address, "fedcba9876543210") == StatusCode::OK; }));
  EXPECT_EQ(AskWithKey(address, "0123456789abcdef"), StatusCode::UNAUTHENTICATED);
  EXPECT_TRUE(Eventually(
      [&] { return absl::StrContains(daemon.Log(), "call method=/moed.v1.Inference/GetModel"); }));
  EXPECT_THAT(daemon.Log(), AllOf(Not(HasSubstr("0123456789")), Not(HasSubstr("fedcba98"))));
}

TEST(OperationsTest, CallsCarryTheirTraceIntoTheJsonLog) {
  DaemonProcess daemon({"--log-format=json", "--log-level=debug"});
  const auto stub = v1::Inference::NewStub(
      grpc::CreateChannel(daemon.WaitUntilListening(), grpc::InsecureChannelCredentials()));
  const std::string trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  grpc::ClientContext context;
  context.AddMetadata("traceparent", trace);
  context.AddMetadata("x-request-id", "gateway-17");
  v1::GetModelResponse response;
  stub->GetModel(&context, {}, &response);
  EXPECT_TRUE(Eventually([&] {
    return absl::StrContains(daemon.Log(), absl::StrCat("\"traceparent\":\"", trace, "\""));
  }));
  EXPECT_THAT(daemon.Log(), HasSubstr("\"client_request_id\":\"gateway-17\""));
}

// What a client writes must come back to that client alone, and only as what it asked for.
TEST(OperationsTest, PromptsAreInNoLogMetricOrError) {
  const std::string canary = "canary-7f3a";
  DaemonProcess daemon({"--log-level=debug"});
  const std::string line = daemon.WaitUntilListeningLine();
  const std::string address = daemon.AddressIn(line, "grpc=");
  const std::string metrics = daemon.AddressIn(line, "metrics=");
  const auto stub =
      v1::Inference::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  v1::GenerateRequest request;
  request.set_text(canary);
  request.mutable_stopping()->set_max_tokens(2);
  EXPECT_TRUE(Eventually([&] { return Generate(*stub, request).status.ok(); }));

  std::vector<v1::GenerateRequest> wrong(5, request);
  wrong[0].mutable_sampling()->set_top_p(7);
  wrong[1].set_text(std::string(10'000'000, 'x') + canary);
  wrong[2].mutable_stopping()->add_stop(canary + std::string(2000, 'x'));
  wrong[3].set_request_id(canary + " blank");
  wrong[4].set_text(canary + "\xff\xfe");
  for (const v1::GenerateRequest& each : wrong) {
    const grpc::Status status = Generate(*stub, each).status;
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(status.error_message() + status.error_details(), Not(HasSubstr(canary)));
  }
  v1::ChatRequest chat;
  chat.add_messages()->set_role("a role of " + canary);
  chat.mutable_messages(0)->set_content(canary);
  grpc::ClientContext context;
  const grpc::Status status = ReadStream(*stub->Chat(&context, chat)).status;
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(status.error_message() + status.error_details(), Not(HasSubstr(canary)));

  const int metrics_port = std::stoi(metrics.substr(metrics.rfind(':') + 1));
  for (const char* path : {"/metrics", "/metrics/experts", "/", "/status.json"}) {
    EXPECT_THAT(HttpGet(metrics_port, path), Not(HasSubstr(canary))) << path;
  }
  daemon.Signal(SIGTERM);
  EXPECT_EQ(daemon.WaitForExit(), 0);
  EXPECT_THAT(daemon.Log(), AllOf(HasSubstr("call method="), Not(HasSubstr(canary))));
}

}  // namespace
}  // namespace moed::server
