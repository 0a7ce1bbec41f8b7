// The daemon's binary: signals, exit codes, logs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>

#include "tests/integration/daemon_process.h"
#include "tests/integration/test_server.h"

namespace moed::server {
namespace {

using testing::HasSubstr;

std::unique_ptr<v1::Inference::Stub> ConnectWhenLoaded(const std::string& address) {
  auto stub =
      v1::Inference::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  EXPECT_TRUE(Eventually([&] {
    grpc::ClientContext context;
    v1::GetModelResponse response;
    return stub->GetModel(&context, {}, &response).ok();
  }));
  return stub;
}

TEST(DaemonTest, ServesTheDemoModelWithoutArguments) {
  DaemonProcess daemon({});
  const auto stub = ConnectWhenLoaded(daemon.WaitUntilListening());
  v1::GenerateRequest request;
  request.set_text("Once upon a time");
  request.mutable_stopping()->set_max_tokens(8);
  request.mutable_stopping()->set_ignore_eos(true);
  const StreamOutcome outcome = Generate(*stub, request);
  EXPECT_TRUE(outcome.status.ok()) << outcome.status.error_message();
  EXPECT_EQ(outcome.tokens.size(), 8u);
  EXPECT_FALSE(outcome.text.empty());
}

TEST(DaemonTest, SigtermFinishesWhatRunsAndLeavesWithSuccess) {
  DaemonProcess daemon({});
  const auto stub = ConnectWhenLoaded(daemon.WaitUntilListening());
  grpc::ClientContext context;
  auto running = stub->Generate(&context, TokensRequest(5, 500));
  v1::GenerateResponse first;
  ASSERT_TRUE(running->Read(&first));
  daemon.Signal(SIGTERM);
  const StreamOutcome outcome = ReadStream(*running);
  EXPECT_TRUE(outcome.status.ok()) << outcome.status.error_message();
  EXPECT_EQ(outcome.finished.usage().completion_tokens(), 500);
  EXPECT_EQ(daemon.WaitForExit(), 0);
}

TEST(DaemonTest, StartsAgainOnThePortOfAKilledOne) {
  DaemonProcess first({});
  const std::string address = first.WaitUntilListening();
  const auto stub = ConnectWhenLoaded(address);
  grpc::ClientContext context;
  auto running = stub->Generate(&context, TokensRequest(5, 4000));
  v1::GenerateResponse response;
  ASSERT_TRUE(running->Read(&response));
  first.Signal(SIGKILL);
  EXPECT_EQ(first.WaitForExit(), 128 + SIGKILL);
  EXPECT_EQ(ReadStream(*running).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  DaemonProcess second({"--port=" + address.substr(address.find(':') + 1)});
  EXPECT_EQ(second.WaitUntilListening(), address);
  EXPECT_TRUE(Generate(*ConnectWhenLoaded(address), TokensRequest(5, 5)).status.ok());
}

TEST(DaemonTest, ErrorsEndItWithACodeAndARemedy) {
  DaemonProcess first({});
  const std::string address = first.WaitUntilListening();
  const struct {
    std::vector<std::string> arguments;
    int exit_code;
    const char* says;
  } cases[] = {
      {{"--no-such-flag"}, 2, "--no-such-flag"},
      {{"--port=" + address.substr(address.find(':') + 1)}, 1, "--port"},
      {{"--expert-budget=1slots"}, 1, "budget"},
      {{"--device=cuda"}, 1, "CUDA"},
  };
  for (const auto& [arguments, exit_code, says] : cases) {
    DaemonProcess daemon(arguments);
    EXPECT_EQ(daemon.WaitForExit(), exit_code) << says;
    EXPECT_THAT(daemon.Log(), HasSubstr(says));
  }
}

TEST(DaemonTest, AMissingCheckpointIsAllItTalksOf) {
  DaemonProcess daemon({"--model=/no/such/checkpoint"});
  EXPECT_EQ(daemon.WaitUntilListening(), "");
  EXPECT_EQ(daemon.WaitForExit(), 1);
  const std::string log = daemon.Log();
  EXPECT_THAT(log, HasSubstr("critical /no/such/checkpoint: No such file or directory; --model"));
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 1) << log;
}

TEST(DaemonTest, PromptsAreNotLogged) {
  DaemonProcess daemon({});
  const auto stub = ConnectWhenLoaded(daemon.WaitUntilListening());
  v1::GenerateRequest request;
  request.set_text("canary-7f3a");
  request.mutable_stopping()->set_max_tokens(2);
  EXPECT_TRUE(Generate(*stub, request).status.ok());
  request.mutable_sampling()->set_top_p(7);
  EXPECT_FALSE(Generate(*stub, request).status.ok());
  daemon.Signal(SIGTERM);
  EXPECT_EQ(daemon.WaitForExit(), 0);
  EXPECT_THAT(daemon.Log(), HasSubstr("serving"));
  EXPECT_THAT(daemon.Log(), testing::Not(HasSubstr("canary")));
}

}  // namespace
}  // namespace moed::server
