// A GPU whose kernels never end: what clients of a daemon see, and how the daemon ends.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/grpc/health/v1/health.grpc.pb.h"
#include "proto/moed/v1/inference.grpc.pb.h"
#include "runtime/backend/cuda/cuda_backend.h"
#include "tests/integration/calls.h"
#include "tests/integration/daemon_process.h"

namespace moed::server {
namespace {

using grpc::StatusCode;
using grpc::health::v1::HealthCheckResponse;
using ::testing::Contains;
using ::testing::HasSubstr;

constexpr int kWatchdogSeconds = 2;
// Far more than a daemon that hangs may take; one that does not end is killed.
constexpr std::chrono::seconds kPatience(30);

// All that it says until it ends.
std::vector<int> WatchHealth(grpc::health::v1::Health::Stub& stub, const char* service) {
  grpc::ClientContext context;
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  const auto reader = stub.Watch(&context, request);
  std::vector<int> statuses;
  for (HealthCheckResponse response; reader->Read(&response);) {
    statuses.push_back(response.status());
  }
  return statuses;
}

bool IsLoaded(v1::Inference::Stub& stub) {
  grpc::ClientContext context;
  v1::GetModelResponse response;
  return stub.GetModel(&context, {}, &response).ok();
}

// Long requests, one after the other, until one fails.
grpc::Status GenerateUntilFailure(v1::Inference::Stub& stub) {
  grpc::Status status;
  for (int i = 0; i < 100 && status.ok(); ++i) {
    status = Generate(stub, TokensRequest(5, 4000)).status;
  }
  return status;
}

class DeviceHangTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!backend::CudaAvailable()) GTEST_SKIP() << "no GPU on this machine, or no CUDA here";
  }
};

TEST_P(DeviceHangTest, EveryRequestEndsAndTheDaemonLeavesWithAFailure) {
  DaemonProcess daemon({"--device=cuda", "--kv-cache-memory=64MiB", "--expert-budget=33%",
                        absl::StrCat("--cold-path=", GetParam()),
                        absl::StrCat("--watchdog-seconds=", kWatchdogSeconds)},
                       {"LD_PRELOAD=" + DaemonProcess::BesideTest("libdevice_hang.so")});
  const std::string address = daemon.WaitUntilListening();
  ASSERT_FALSE(address.empty()) << daemon.Log();
  const auto channel = grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
  const auto inference = v1::Inference::NewStub(channel);
  const auto health = grpc::health::v1::Health::NewStub(channel);
  ASSERT_TRUE(Eventually([&] { return IsLoaded(*inference); })) << daemon.Log();
  const StreamOutcome before = Generate(*inference, TokensRequest(5, 64));
  ASSERT_TRUE(before.status.ok()) << before.status.error_message() << daemon.Log();
  auto ready = std::async(std::launch::async, WatchHealth, std::ref(*health),
                          v1::Inference::service_full_name());
  // First, so that requests run when the device stops.
  auto failure = std::async(std::launch::async, GenerateUntilFailure, std::ref(*inference));

  daemon.Signal(SIGUSR2);
  const absl::Time hung = absl::Now();
  if (failure.wait_for(kPatience) != std::future_status::ready) daemon.Signal(SIGKILL);
  const grpc::Status status = failure.get();
  EXPECT_EQ(status.error_code(), StatusCode::UNAVAILABLE) << status.error_message();
  const bool ended = Eventually([&] { return daemon.HasEnded(); });
  std::printf("  ended %.1f s after its device hung, of which the watchdog waits %d\n",
              absl::ToDoubleSeconds(absl::Now() - hung), kWatchdogSeconds);
  EXPECT_TRUE(ended) << "still there 20 s after its last request";
  if (!ended) daemon.Signal(SIGKILL);
  EXPECT_EQ(daemon.WaitForExit(), EXIT_FAILURE);
  const std::vector<int> statuses = ready.get();
  EXPECT_THAT(statuses, Contains(HealthCheckResponse::SERVING));
  EXPECT_EQ(statuses.empty() ? -1 : statuses.back(), HealthCheckResponse::NOT_SERVING);
  EXPECT_THAT(daemon.Log(), HasSubstr("device_hang: the device is full"));
  EXPECT_THAT(daemon.Log(), HasSubstr("the engine hangs"));
}

INSTANTIATE_TEST_SUITE_P(ColdPaths, DeviceHangTest, testing::Values("link", "hybrid"),
                         [](const auto& path) { return std::string(path.param); });

}  // namespace
}  // namespace moed::server
