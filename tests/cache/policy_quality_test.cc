// What the cache achieves on routing with locality: against the optimum, other policies, scans and
// changes of workload. Everything here is deterministic.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "cache/expert_cache.h"
#include "cache/optimum.h"
#include "cache/routing_replay.h"
#include "tests/cache/synthetic_routing.h"

namespace moed::cache {
namespace {

constexpr SyntheticRouting kRouting = {.layers = 4, .experts = 64, .top_k = 4};
constexpr int kTotal = kRouting.layers * kRouting.experts;

std::unique_ptr<ExpertCache> MakeCache(int num_slots, const std::string& policy) {
  return *ExpertCache::Create(
      {.experts_per_layer = std::vector<int>(kRouting.layers, kRouting.experts),
       .top_k = kRouting.top_k,
       .num_slots = num_slots,
       .policy = policy});
}

std::vector<RoutingTrace> Steady(int steps) {
  SyntheticRouter router(kRouting, 1);
  std::vector<RoutingTrace> traces;
  for (int step = 0; step < steps; ++step) traces.push_back(router.Step(0));
  return traces;
}

std::vector<RoutingTrace> Switching(int steps) {
  SyntheticRouter router(kRouting, 2);
  std::vector<RoutingTrace> traces;
  for (int step = 0; step < steps; ++step) traces.push_back(router.Step(step / 500 % 3));
  return traces;
}

void ExpectAheadOf(const std::vector<std::string>& others,
                   const std::vector<RoutingTrace>& traces) {
  for (int percent : {15, 30, 50}) {
    const int num_slots = kTotal * percent / 100;
    const double ours = Replay(traces, *MakeCache(num_slots, "recency-frequency")).hit_rate();
    for (const std::string& other : others) {
      EXPECT_GT(ours, Replay(traces, *MakeCache(num_slots, other)).hit_rate() - 0.002)
          << other << " at " << percent << " %";
    }
  }
}

TEST(PolicyQualityTest, DefaultPolicyIsAheadOnSteadyRouting) {
  ExpectAheadOf({"lru", "static"}, Steady(3000));
}

TEST(PolicyQualityTest, DefaultPolicyIsAheadWhenTheDomainChanges) {
  ExpectAheadOf({"lru", "lfu", "static"}, Switching(3000));
}

TEST(PolicyQualityTest, NothingBeatsTheOptimum) {
  const std::vector<RoutingTrace> traces = Switching(2000);
  const ExpertIndex index(std::vector<int>(kRouting.layers, kRouting.experts));
  for (int num_slots : {40, 80, 160}) {
    const double optimum = OptimumOnePool(index, num_slots, traces).hit_rate();
    for (const char* policy : {"recency-frequency", "lru", "lfu", "static"}) {
      EXPECT_LE(Replay(traces, *MakeCache(num_slots, policy)).hit_rate(), optimum) << policy;
    }
  }
}

// 32 chunks of 1024 tokens of a foreign prompt, each weighing as one sequence.
TEST(PolicyQualityTest, A32kPrefillCostsDecodesAtMostTwoPoints) {
  constexpr int kChunkTokens = 1024;
  constexpr int kChunks = 32;
  SyntheticRouter decode(kRouting, 3);
  std::unique_ptr<ExpertCache> alone = MakeCache(kTotal * 3 / 10, "recency-frequency");
  std::unique_ptr<ExpertCache> beside = MakeCache(kTotal * 3 / 10, "recency-frequency");
  SyntheticRouting chunk_routing = kRouting;
  chunk_routing.sequences = kChunkTokens;
  SyntheticRouter prefill(chunk_routing, 4);
  HitCount with;
  HitCount without;
  for (int step = 0; step < 600; ++step) {
    const std::vector<RoutingTrace> token = {decode.Step(0)};
    if (step >= 500 && step < 500 + kChunks) {
      RoutingTrace chunk = prefill.Step(1);
      for (LayerRouting& layer : chunk.layers) {
        for (ExpertLoad& load : layer.experts) load.weight /= kChunkTokens;
      }
      ReplayStep(chunk, *beside);
    }
    const HitCount a = Replay(token, *alone);
    const HitCount b = Replay(token, *beside);
    if (step < 500) continue;
    without.hits += a.hits;
    without.misses += a.misses;
    with.hits += b.hits;
    with.misses += b.misses;
  }
  EXPECT_GT(with.hit_rate(), without.hit_rate() - 0.02);
}

TEST(PolicyQualityTest, AdaptsToANewDomainWithin256Tokens) {
  SyntheticRouter router(kRouting, 5);
  std::unique_ptr<ExpertCache> cache = MakeCache(kTotal * 3 / 10, "recency-frequency");
  const auto run = [&](int domain, int steps) {
    std::vector<RoutingTrace> traces;
    for (int step = 0; step < steps; ++step) traces.push_back(router.Step(domain));
    return Replay(traces, *cache).hit_rate();
  };
  run(0, 2000);
  run(1, 256);
  const double after_switch = run(1, 256);
  run(1, 1000);
  EXPECT_GT(after_switch, 0.95 * run(1, 1000));
}

TEST(MissRatioCurveTest, AgreesWithReplayAtOtherBudgets) {
  for (const std::vector<RoutingTrace>& traces : {Steady(8000), Switching(8000)}) {
    std::unique_ptr<ExpertCache> observer = MakeCache(kTotal / 4, "recency-frequency");
    Replay(traces, *observer);
    for (int percent : {15, 30, 50, 75, 100}) {
      const int num_slots = kTotal * percent / 100;
      std::unique_ptr<ExpertCache> other = MakeCache(num_slots, "recency-frequency");
      Replay(traces, *other);  // the second time it is warm
      EXPECT_NEAR(observer->HitRateAt(num_slots), Replay(traces, *other).hit_rate(), 0.02)
          << percent << " %";
    }
  }
}

TEST(MissRatioCurveTest, KnowsNothingBeforeTheFirstStep) {
  EXPECT_EQ(MakeCache(kTotal, "lru")->HitRateAt(kTotal), 0);
}

}  // namespace
}  // namespace moed::cache
