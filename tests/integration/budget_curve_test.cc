// The curve of hit rates at other budgets, against replaying what the demo model routed at each of
// them: real routing has rhythms and repeats itself as made-up routing does not.
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "cache/expert_cache.h"
#include "cache/routing_log.h"
#include "cache/routing_replay.h"
#include "server/model_host.h"
#include "tests/integration/test_server.h"

namespace moed::server {
namespace {

constexpr const char* kArithmetic = "12 + 30 = 42\n7 * 8 = 56\n91 - 45 = ";
constexpr const char* kGerman = "FAUST:\n  Wie wird mir nun, da ich dich seh,\n  ";
constexpr const char* kSpanish =
    "En esto descubrieron treinta o cuarenta molinos de viento, y don Quijote ";

void Write(v1::Inference::Stub& stub, const std::string& prompt, int seed, int tokens) {
  v1::GenerateRequest request;
  request.set_text(prompt);
  request.mutable_sampling()->set_temperature(0.8);
  request.mutable_sampling()->set_seed(seed);
  request.mutable_stopping()->set_max_tokens(tokens);
  request.mutable_stopping()->set_ignore_eos(true);
  const StreamOutcome outcome = Generate(stub, request);
  EXPECT_TRUE(outcome.status.ok()) << outcome.status.error_message();
}

// What was recorded while one user after the other, or all at once, was served texts of 500 tokens.
cache::RoutingLog Record(const std::vector<std::string>& prompts, bool at_once) {
  const std::string path = testing::TempDir() + "/budget_curve.trace";
  {
    Options options;
    options.model = MOED_DEMO_MODEL;
    options.cpu_threads = 1;
    options.kv_cache_bytes = 64 << 20;
    options.expert_budget = "100%";
    options.record_routing = path;
    TestServer server(options, LoadModel);
    server.WaitUntilLoaded();
    std::vector<std::thread> users;
    for (size_t i = 0; i < prompts.size(); ++i) {
      users.emplace_back(
          [&, i] { Write(server.inference(), prompts[i], static_cast<int>(i), 500); });
      if (!at_once) users.back().join();
    }
    for (std::thread& user : users) {
      if (user.joinable()) user.join();
    }
  }
  std::stringstream bytes;
  bytes << std::ifstream(path).rdbuf();
  std::remove(path.c_str());
  absl::StatusOr<cache::RoutingLog> log = cache::ParseRoutingLog(bytes.str());
  EXPECT_TRUE(log.ok()) << log.status();
  return *std::move(log);
}

void ExpectCurveOfReplay(const cache::RoutingLog& log) {
  ASSERT_GT(log.steps.size(), 400);
  const auto new_cache = [&](int slots) {
    return *cache::ExpertCache::Create({.experts_per_layer = log.header.experts_per_layer,
                                        .top_k = log.header.top_k,
                                        .num_slots = slots});
  };
  int experts = 0;
  for (int layer_experts : log.header.experts_per_layer) experts += layer_experts;
  const std::unique_ptr<cache::ExpertCache> observer = new_cache(experts / 4);
  cache::Replay(log.steps, *observer);
  for (int percent : {15, 30, 50, 75, 100}) {
    const int slots = experts * percent / 100;
    const std::unique_ptr<cache::ExpertCache> other = new_cache(slots);
    EXPECT_NEAR(observer->HitRateAt(slots), cache::Replay(log.steps, *other).hit_rate(), 0.02)
        << percent << " % of the experts, " << log.steps.size() << " steps";
  }
}

TEST(BudgetCurveTest, IsThatOfReplayForOneUser) {
  ExpectCurveOfReplay(Record({kGerman, kGerman, kGerman}, /*at_once=*/false));
  ExpectCurveOfReplay(Record({kArithmetic, kArithmetic, kArithmetic}, /*at_once=*/false));
  ExpectCurveOfReplay(Record({kSpanish, kSpanish, kSpanish}, /*at_once=*/false));
}

TEST(BudgetCurveTest, IsThatOfReplayWhenTheDomainChanges) {
  ExpectCurveOfReplay(Record({kGerman, kArithmetic, kSpanish, kGerman, kArithmetic, kSpanish},
                             /*at_once=*/false));
}

TEST(BudgetCurveTest, IsThatOfReplayForSeveralUsersAtOnce) {
  ExpectCurveOfReplay(Record({kGerman, kArithmetic, kSpanish}, /*at_once=*/true));
}

}  // namespace
}  // namespace moed::server
