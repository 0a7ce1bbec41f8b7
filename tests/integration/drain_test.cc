// Replicas that come and go under load: what clients may see of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <random>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/integration/daemon_process.h"
#include "tests/integration/test_server.h"

namespace moed::server {
namespace {

using grpc::StatusCode;

const std::vector<std::string> kSmall = {"--kv-cache-memory=64MiB", "--cpu-threads=1"};

// MOED_SIGTERM_ROUNDS=200 is the long run.
int Rounds() {
  const char* text = std::getenv("MOED_SIGTERM_ROUNDS");
  int rounds = 0;
  return text != nullptr && absl::SimpleAtoi(text, &rounds) ? rounds : 8;
}

std::shared_ptr<grpc::Channel> NewChannel(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

// As a readiness probe asks.
bool IsReady(const std::string& address) {
  const auto stub = grpc::health::v1::Health::NewStub(NewChannel(address));
  grpc::ClientContext context;
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(v1::Inference::service_full_name());
  grpc::health::v1::HealthCheckResponse response;
  return stub->Check(&context, request, &response).ok() &&
         response.status() == grpc::health::v1::HealthCheckResponse::SERVING;
}

bool HasGenerated(const std::string& address) {
  const auto stub = v1::Experts::NewStub(NewChannel(address));
  grpc::ClientContext context;
  v1::ExpertStats stats;
  return stub->GetStats(&context, {}, &stats).ok() && stats.serving().generation_tokens_total() > 0;
}

// Calls one after the other until one is refused. True if each had its answer whole, but for the
// last: that one was UNAVAILABLE before its first token.
bool SeesOnlyWhatADrainMayShow(const std::string& address, unsigned seed, int* served) {
  const auto stub = v1::Inference::NewStub(NewChannel(address));
  std::mt19937 random(seed);
  while (true) {
    const int64_t tokens = 1 + static_cast<int64_t>(random() % 60);
    const StreamOutcome outcome = Generate(*stub, TokensRequest(5, tokens));
    if (outcome.status.ok()) {
      if (outcome.finished.usage().completion_tokens() != tokens) return false;
      ++*served;
      continue;
    }
    if (outcome.status.error_code() == StatusCode::UNAVAILABLE && outcome.tokens.empty())
      return true;
    ADD_FAILURE() << outcome.status.error_code() << " after " << outcome.tokens.size()
                  << " tokens: " << outcome.status.error_message();
    return false;
  }
}

TEST(DrainTest, SigtermAtAnyMomentCostsNoClientItsAnswer) {
  constexpr int kClients = 6;
  std::mt19937 random(1);
  int served = 0;
  for (int round = 0; round < Rounds(); ++round) {
    DaemonProcess daemon(kSmall);
    const std::string address = daemon.WaitUntilListening();
    EXPECT_TRUE(Eventually([&] { return IsReady(address); }));
    std::array<int, kClients> served_by = {};
    std::atomic<int> honest = 0;
    std::vector<std::thread> clients;
    for (int i = 0; i < kClients; ++i) {
      clients.emplace_back([&, i, seed = static_cast<unsigned>(random())] {
        if (SeesOnlyWhatADrainMayShow(address, seed, &served_by[i])) ++honest;
      });
    }
    absl::SleepFor(absl::Microseconds(random() % 300'000));
    daemon.Signal(SIGTERM);
    for (std::thread& client : clients) client.join();
    EXPECT_EQ(honest, kClients) << "round " << round;
    EXPECT_EQ(daemon.WaitForExit(), 0) << daemon.Log();
    for (int count : served_by) served += count;
  }
  EXPECT_GT(served, 0);
}

// Replaces `daemon`, letting it drain, by another on its port.
void Restart(std::unique_ptr<DaemonProcess>& daemon, const std::string& address) {
  daemon->Signal(SIGTERM);
  EXPECT_EQ(daemon->WaitForExit(), 0);
  std::vector<std::string> arguments = kSmall;
  arguments.push_back("--port=" + address.substr(address.rfind(':') + 1));
  daemon = std::make_unique<DaemonProcess>(arguments);
  EXPECT_EQ(daemon->WaitUntilListening(), address);
  EXPECT_TRUE(Eventually([&] { return IsReady(address); }));
}

// What a command prints, read on a thread of its own.
class Command {
 public:
  explicit Command(const std::string& line)
      : pipe_(popen(line.c_str(), "r")), reader_([this] { Read(); }) {}
  ~Command() { reader_.join(); }

  bool ended() const { return ended_; }
  // After its end.
  const std::string& output() const { return output_; }

 private:
  void Read() {
    std::array<char, 4096> buffer;
    while (std::fgets(buffer.data(), buffer.size(), pipe_) != nullptr) output_ += buffer.data();
    EXPECT_EQ(pclose(pipe_), 0);
    ended_ = true;
  }

  FILE* const pipe_;
  std::string output_;
  std::atomic<bool> ended_ = false;
  std::thread reader_;
};

// One after the other, again and again while requests come: the next goes once clients have found
// the last, as a pod's preStop hook gives them time to.
TEST(DrainTest, RollingRestartsUnderBenchFailNoRequest) {
  std::array<std::unique_ptr<DaemonProcess>, 2> daemons;
  std::array<std::string, 2> addresses;
  for (int i = 0; i < 2; ++i) {
    daemons[i] = std::make_unique<DaemonProcess>(kSmall);
    addresses[i] = daemons[i]->WaitUntilListening();
    EXPECT_TRUE(Eventually([&] { return IsReady(addresses[i]); }));
  }
  const Command bench(
      absl::StrCat(MOEDCTL_BINARY, " --address ipv4:", addresses[0], ",", addresses[1],
                   " bench --rate 40 --requests 400 --prompt-tokens 16 --output-tokens 40 --json"));
  for (int restarts = 0; restarts < 2 || !bench.ended(); ++restarts) {
    const int i = restarts % 2;
    Restart(daemons[i], addresses[i]);
    EXPECT_TRUE(Eventually([&] { return bench.ended() || HasGenerated(addresses[i]); }));
  }
  EXPECT_TRUE(Eventually([&] { return bench.ended(); }));
  const auto report = nlohmann::json::parse(bench.output());
  EXPECT_EQ(report["succeeded"], 400) << bench.output();
}

}  // namespace
}  // namespace moed::server
