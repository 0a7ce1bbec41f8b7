// An engine that hangs: what clients see, and how the daemon ends.
#include <dirent.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/wait.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/integration/daemon_process.h"
#include "tests/integration/scripted_runner.h"
#include "tests/integration/test_server.h"

namespace moed::server {
namespace {

using grpc::StatusCode;
using testing::HasSubstr;

constexpr char kInference[] = "moed.v1.Inference";

Options WithWatchdog(double seconds) {
  Options options;
  options.watchdog_seconds = seconds;
  return options;
}

TEST(WatchdogTest, AHangingStepEndsEveryRequestAndTheServer) {
  ScriptedRunner* runner = nullptr;
  Options options = WithWatchdog(0.6);
  options.max_num_seqs = 1;
  TestServer server(options, ScriptedLoader(&runner));
  server.WaitUntilLoaded();
  runner->SetStepTime(absl::Milliseconds(20));
  grpc::ClientContext running_context, waiting_context;
  auto running = server.inference().Generate(&running_context, TokensRequest(5, 10000));
  v1::GenerateResponse first;
  ASSERT_TRUE(running->Read(&first));
  auto waiting = server.inference().Generate(&waiting_context, TokensRequest(5, 10));
  EXPECT_TRUE(Eventually([&] { return server.Stats().waiting() == 1; }));
  runner->SetGate(false);
  for (auto* call : {running.get(), waiting.get()}) {
    const grpc::Status status = ReadStream(*call).status;
    EXPECT_EQ(status.error_code(), StatusCode::UNAVAILABLE) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr("its engine has stopped"));
  }
  const absl::Status status = server.Stop();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("--watchdog-seconds"));
  runner->SetGate(true);  // so that the test can end
}

TEST(WatchdogTest, ALongStepThatAdvancesIsNoHang) {
  ScriptedRunner* runner = nullptr;
  TestServer server(WithWatchdog(0.6), ScriptedLoader(&runner));
  server.WaitUntilLoaded();
  runner->SetStepTime(absl::Milliseconds(1500));
  const StreamOutcome outcome = Generate(server.inference(), TokensRequest(5, 2));
  EXPECT_TRUE(outcome.status.ok()) << outcome.status.error_message();
  EXPECT_TRUE(server.Stop().ok());
}

TEST(WatchdogTest, ASlowLoaderIsNoHang) {
  ScriptedRunner* runner = nullptr;
  TestServer server(WithWatchdog(0.3), [load = ScriptedLoader(&runner)](const Options& options) {
    absl::SleepFor(absl::Milliseconds(1200));
    return load(options);
  });
  server.WaitUntilLoaded();
  EXPECT_TRUE(Generate(server.inference(), TokensRequest(5, 2)).status.ok());
}

TEST(WatchdogTest, AHangWhileDrainingEndsTheDrain) {
  ScriptedRunner* runner = nullptr;
  Options options = WithWatchdog(0.6);
  options.drain_seconds = 3600;
  TestServer server(options, ScriptedLoader(&runner));
  server.WaitUntilLoaded();
  runner->SetStepTime(absl::Milliseconds(20));
  grpc::ClientContext context;
  auto running = server.inference().Generate(&context, TokensRequest(5, 10000));
  v1::GenerateResponse first;
  ASSERT_TRUE(running->Read(&first));
  server.RequestStop();
  EXPECT_TRUE(Eventually([&] {
    return server.HealthOf(kInference) == grpc::health::v1::HealthCheckResponse::NOT_SERVING;
  }));
  runner->SetGate(false);
  EXPECT_EQ(ReadStream(*running).status.error_code(), StatusCode::UNAVAILABLE);
  EXPECT_TRUE(absl::IsUnavailable(server.Stop()));
  runner->SetGate(true);
}

// The thread of the process that has this name; -1: none.
pid_t ThreadNamed(pid_t process, const std::string& name) {
  const std::string tasks = absl::StrCat("/proc/", process, "/task");
  DIR* directory = opendir(tasks.c_str());
  if (directory == nullptr) return -1;
  pid_t found = -1;
  while (const dirent* entry = readdir(directory)) {
    std::ifstream file(absl::StrCat(tasks, "/", entry->d_name, "/comm"));
    std::string comm;
    if (std::getline(file, comm) && comm == name) found = std::atoi(entry->d_name);
  }
  closedir(directory);
  return found;
}

TEST(WatchdogTest, ADaemonWhoseEngineThreadIsStoppedLeavesWithAFailure) {
  DaemonProcess daemon({"--watchdog-seconds=1"});
  const std::string address = daemon.WaitUntilListening();
  const auto stub =
      v1::Inference::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  EXPECT_TRUE(Eventually([&] {
    grpc::ClientContext context;
    v1::GetModelResponse response;
    return stub->GetModel(&context, {}, &response).ok();
  }));
  grpc::ClientContext context;
  auto running = stub->Generate(&context, TokensRequest(5, 4000));
  v1::GenerateResponse first;
  ASSERT_TRUE(running->Read(&first));
  const pid_t engine = ThreadNamed(daemon.pid(), "moed-engine");
  ASSERT_GT(engine, 0);
  // Stops this one thread, as a device that never answers would.
  if (ptrace(PTRACE_SEIZE, engine, nullptr, nullptr) != 0) {
    GTEST_SKIP() << "this system allows no ptrace of a child: errno " << errno;
  }
  ASSERT_EQ(ptrace(PTRACE_INTERRUPT, engine, nullptr, nullptr), 0);
  const absl::Time stopped = absl::Now();
  const grpc::Status status = ReadStream(*running).status;
  EXPECT_EQ(status.error_code(), StatusCode::UNAVAILABLE) << status.error_message();
  // A process ends for its parent only once the tracer has taken the end of the traced thread.
  int thread_status = 0;
  while (waitpid(engine, &thread_status, __WALL) == engine && WIFSTOPPED(thread_status)) {
  }
  EXPECT_EQ(daemon.WaitForExit(), EXIT_FAILURE);
  std::printf("  ended %.1f s after its engine thread was stopped, of which the watchdog waits 1\n",
              absl::ToDoubleSeconds(absl::Now() - stopped));
  EXPECT_THAT(daemon.Log(), HasSubstr("hangs"));
}

}  // namespace
}  // namespace moed::server
