#include "cache/expert_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace moed::cache {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

std::unique_ptr<ExpertCache> MakeCache(ExpertCacheOptions options) {
  absl::StatusOr<std::unique_ptr<ExpertCache>> cache = ExpertCache::Create(options);
  EXPECT_TRUE(cache.ok()) << cache.status();
  return *std::move(cache);
}

ExpertCacheOptions OneLayer(int experts, int num_slots) {
  return {.experts_per_layer = {experts}, .top_k = 2, .num_slots = num_slots};
}

LayerDemand Demand(ExpertCache& cache, int layer, const std::vector<int>& experts) {
  LayerDemand demand;
  cache.Demand(layer, experts, &demand);
  return demand;
}

// A step in which each of `experts` gets one token; returns the demand with all its fills done.
LayerDemand Use(ExpertCache& cache, int layer, const std::vector<int>& experts) {
  std::vector<ExpertLoad> loads;
  for (int expert : experts) loads.push_back({.expert = expert, .tokens = 1, .weight = 1});
  cache.BeginStep();
  cache.Observe(layer, loads);
  LayerDemand result = Demand(cache, layer, experts);
  for (const Grant& grant : result.grants) {
    EXPECT_EQ(cache.Filled(grant.slot, grant.generation), grant.to_fill);
  }
  return result;
}

std::vector<int> Residents(const ExpertCache& cache, int layer, int experts) {
  std::vector<int> residents;
  for (int expert = 0; expert < experts; ++expert) {
    if (cache.resident({layer, expert})) residents.push_back(expert);
  }
  return residents;
}

TEST(ExpertCacheTest, RefusesFewerSlotsThanTopK) {
  const absl::Status status = ExpertCache::Create(OneLayer(8, 1)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("smallest legal budget is 2 slots"));
}

TEST(ExpertCacheTest, DeviceDrivenNeedsNoSlots) {
  ExpertCacheOptions options = OneLayer(8, 0);
  options.driver = CacheDriver::kDevice;
  EXPECT_TRUE(ExpertCache::Create(options).ok());
}

TEST(ExpertCacheTest, RefusesOptionsThatMakeNoSense) {
  const ExpertCacheOptions kBad[] = {
      {.experts_per_layer = {}, .top_k = 1, .num_slots = 4},
      {.experts_per_layer = {0, 0}, .top_k = 1, .num_slots = 4},
      {.experts_per_layer = {4, -1}, .top_k = 1, .num_slots = 4},
      {.experts_per_layer = {4}, .top_k = 0, .num_slots = 4},
      {.experts_per_layer = {4}, .top_k = 5, .num_slots = 4},
      {.experts_per_layer = {4}, .top_k = 1, .num_slots = -1},
      {.experts_per_layer = {4}, .top_k = 1, .num_slots = 3, .max_slots = 2},
      {.experts_per_layer = {4}, .top_k = 1, .num_slots = 3, .policy = "random"},
  };
  for (const ExpertCacheOptions& options : kBad) {
    EXPECT_EQ(ExpertCache::Create(options).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(ExpertCacheTest, MissIsFilledOnceAndHitsAfterwards) {
  auto cache = MakeCache(OneLayer(8, 8));
  {
    const LayerDemand first = Use(*cache, 0, {3, 5});
    ASSERT_THAT(first.grants, SizeIs(2));
    EXPECT_TRUE(first.grants[0].to_fill);
    EXPECT_TRUE(first.grants[0].admitted);
  }
  const LayerDemand second = Use(*cache, 0, {3, 5});
  EXPECT_TRUE(second.grants[0].resident);
  EXPECT_FALSE(second.grants[0].to_fill);
  const LayerStats stats = cache->Stats().layers[0];
  EXPECT_EQ(stats.hits_total, 2);
  EXPECT_EQ(stats.misses_total, 2);
  EXPECT_EQ(stats.admissions_total, 2);
  EXPECT_EQ(stats.tokens_total, 4);
  EXPECT_EQ(stats.resident, 2);
}

TEST(ExpertCacheTest, EvictsColdestUnpinnedExpert) {
  auto cache = MakeCache(OneLayer(8, 4));  // one scratch slot, three residents
  Use(*cache, 0, {0, 1});
  Use(*cache, 0, {0, 1});
  Use(*cache, 0, {2});
  ASSERT_THAT(Residents(*cache, 0, 8), ElementsAre(0, 1, 2));
  Use(*cache, 0, {3});
  Use(*cache, 0, {3});
  EXPECT_THAT(Residents(*cache, 0, 8), ElementsAre(0, 1, 3));
  EXPECT_EQ(cache->Stats().layers[0].evictions_total, 1);
}

TEST(ExpertCacheTest, PinnedExpertIsNeverEvicted) {
  ExpertCacheOptions options = OneLayer(8, 4);
  options.policy = "lru";
  auto cache = MakeCache(options);
  const LayerDemand pinned = Use(*cache, 0, {0});
  for (int expert = 1; expert < 8; ++expert) Use(*cache, 0, {expert});
  EXPECT_TRUE(cache->resident({0, 0}));
  EXPECT_TRUE(cache->Verify({0, 0}, pinned.grants[0].slot, pinned.grants[0].generation).ok());
}

TEST(ExpertCacheTest, ColdMissIsComputedFromScratchAndNotKept) {
  auto cache = MakeCache(OneLayer(8, 4));
  for (int i = 0; i < 3; ++i) Use(*cache, 0, {0, 1, 2});
  {
    const LayerDemand cold = Use(*cache, 0, {7});
    ASSERT_THAT(cold.grants, SizeIs(1));
    EXPECT_FALSE(cold.grants[0].admitted);
    EXPECT_TRUE(cache->resident({0, 7}));
  }
  EXPECT_FALSE(cache->resident({0, 7}));
  EXPECT_THAT(Residents(*cache, 0, 8), ElementsAre(0, 1, 2));
  EXPECT_EQ(cache->Stats().layers[0].refused_admissions_total, 1);
}

TEST(ExpertCacheTest, MoreExpertsThanSlotsRunInWaves) {
  auto cache = MakeCache(OneLayer(8, 2));
  cache->BeginStep();
  std::vector<int> computed;
  LayerDemand wave = Demand(*cache, 0, {0, 1, 2, 3, 4, 5, 6, 7});
  for (;; cache->DemandDeferred(&wave)) {
    ASSERT_FALSE(wave.grants.empty());
    ASSERT_LE(wave.grants.size(), 2);
    for (const Grant& grant : wave.grants) {
      ASSERT_TRUE(cache->Filled(grant.slot, grant.generation));
      computed.push_back(grant.key.expert);
    }
    if (wave.deferred.empty()) break;
  }
  EXPECT_THAT(computed, ::testing::UnorderedElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
  EXPECT_EQ(cache->Stats().layers[0].misses_total, 8);
}

TEST(ExpertCacheTest, EverythingIsDeferredWhileAllSlotsArePinned) {
  auto cache = MakeCache(OneLayer(8, 2));
  const LayerDemand held = Use(*cache, 0, {0, 1});
  const LayerDemand blocked = Demand(*cache, 0, {2, 3});
  EXPECT_THAT(blocked.grants, IsEmpty());
  EXPECT_THAT(blocked.deferred, ElementsAre(2, 3));
}

TEST(ExpertCacheTest, StaleFillIsIgnored) {
  auto cache = MakeCache(OneLayer(8, 2));
  cache->BeginStep();
  LayerDemand demand = Demand(*cache, 0, {4});
  const int32_t slot = demand.grants[0].slot;
  const uint32_t generation = demand.grants[0].generation;
  demand.grants.clear();
  EXPECT_FALSE(cache->Filled(slot, generation));
  EXPECT_FALSE(cache->resident({0, 4}));
  const LayerDemand again = Demand(*cache, 0, {5});
  EXPECT_EQ(again.grants[0].slot, slot);
  EXPECT_FALSE(cache->Filled(slot, generation));
  EXPECT_FALSE(cache->FillFailed(slot, generation));
  EXPECT_TRUE(cache->Filled(slot, again.grants[0].generation));
}

TEST(ExpertCacheTest, FailedFillFreesItsSlotWithTheLastPin) {
  auto cache = MakeCache(OneLayer(8, 2));
  cache->BeginStep();
  {
    const LayerDemand demand = Demand(*cache, 0, {4});
    const Grant& grant = demand.grants[0];
    EXPECT_TRUE(cache->FillFailed(grant.slot, grant.generation));
    EXPECT_FALSE(cache->resident({0, 4}));
    EXPECT_FALSE(cache->Verify({0, 4}, grant.slot, grant.generation).ok());
  }
  EXPECT_THAT(Demand(*cache, 0, {4, 5}).grants, SizeIs(2));
}

TEST(ExpertCacheTest, VerifyNamesBothSides) {
  auto cache = MakeCache(OneLayer(8, 4));
  const LayerDemand demand = Use(*cache, 0, {6});
  const Grant& grant = demand.grants[0];
  EXPECT_TRUE(cache->Verify(grant.key, grant.slot, grant.generation).ok());
  const absl::Status wrong = cache->Verify({0, 1}, grant.slot, grant.generation);
  EXPECT_EQ(wrong.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(wrong.message()), HasSubstr("expert 1"));
  EXPECT_THAT(std::string(wrong.message()), HasSubstr("expert 6"));
  EXPECT_FALSE(cache->Verify(grant.key, grant.slot, grant.generation + 1).ok());
  EXPECT_FALSE(cache->Verify(grant.key, 99, grant.generation).ok());
}

TEST(ExpertCacheTest, PrefetchedExpertIsWaitedForNotFilledTwice) {
  auto cache = MakeCache(OneLayer(8, 4));
  cache->BeginStep();
  std::optional<Grant> prefetch = cache->Prefetch({0, 3});
  ASSERT_TRUE(prefetch.has_value());
  EXPECT_FALSE(cache->Prefetch({0, 3}).has_value());
  const LayerDemand demand = Demand(*cache, 0, {3});
  EXPECT_FALSE(demand.grants[0].resident);
  EXPECT_FALSE(demand.grants[0].to_fill);
  EXPECT_TRUE(cache->Filled(prefetch->slot, prefetch->generation));
  EXPECT_TRUE(cache->resident({0, 3}));
}

TEST(ExpertCacheTest, PrefetchNeverDisplacesSomethingHotter) {
  auto cache = MakeCache(OneLayer(8, 4));
  Use(*cache, 0, {0, 1, 2});
  EXPECT_FALSE(cache->Prefetch({0, 7}).has_value());
}

TEST(ExpertCacheTest, BigPrefillDoesNotFlushTheDecodeSet) {
  auto cache = MakeCache({.experts_per_layer = {32}, .top_k = 2, .num_slots = 18});
  for (int step = 0; step < 50; ++step) Use(*cache, 0, {0, 1, 2, 3, 4, 5, 6, 7});
  const std::vector<int> decode_set = Residents(*cache, 0, 8);
  for (int chunk = 0; chunk < 8; ++chunk) {
    std::vector<ExpertLoad> loads;
    std::vector<int> experts;
    for (int expert = 0; expert < 32; ++expert) {
      loads.push_back({.expert = expert, .tokens = 256, .weight = 2.0f / 32});
      experts.push_back(expert);
    }
    cache->BeginStep();
    cache->Observe(0, loads);
    LayerDemand wave = Demand(*cache, 0, experts);
    for (;; cache->DemandDeferred(&wave)) {
      for (const Grant& grant : wave.grants) {
        if (grant.to_fill) cache->Filled(grant.slot, grant.generation);
      }
      if (wave.deferred.empty()) break;
    }
  }
  EXPECT_EQ(Residents(*cache, 0, 8), decode_set);
}

TEST(ExpertCacheTest, KeptExpertOutlastsHotterOnes) {
  auto cache = MakeCache(OneLayer(8, 4));
  Use(*cache, 0, {7});
  ASSERT_TRUE(cache->PinExpert({0, 7}).ok());
  for (int step = 0; step < 20; ++step) Use(*cache, 0, {0, 1, 2, 3});
  EXPECT_TRUE(cache->resident({0, 7}));
  ASSERT_TRUE(cache->UnpinExpert({0, 7}).ok());
  for (int step = 0; step < 20; ++step) Use(*cache, 0, {0, 1, 2, 3});
  EXPECT_FALSE(cache->resident({0, 7}));
}

TEST(ExpertCacheTest, RefusesToKeepMoreThanLeavesRoomToCompute) {
  auto cache = MakeCache(OneLayer(8, 4));
  EXPECT_TRUE(cache->PinExpert({0, 0}).ok());
  EXPECT_TRUE(cache->PinExpert({0, 1}).ok());
  EXPECT_EQ(cache->PinExpert({0, 2}).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(cache->PinExpert({1, 0}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(cache->SetBudget(3).code(), absl::StatusCode::kResourceExhausted);
}

TEST(ExpertCacheTest, ShrinkingEvictsTheColdestAndGrowingBringsSlotsBack) {
  auto cache = MakeCache(OneLayer(8, 8));
  for (int hottest = 7; hottest >= 0; --hottest) {
    for (int expert = 0; expert <= hottest; ++expert) Use(*cache, 0, {expert});
  }
  ASSERT_TRUE(cache->SetBudget(4).ok());
  EXPECT_THAT(Residents(*cache, 0, 8), ElementsAre(0, 1, 2));
  ASSERT_TRUE(cache->SetBudget(8).ok());
  for (int expert = 0; expert < 8; ++expert) Use(*cache, 0, {expert});
  EXPECT_THAT(Residents(*cache, 0, 8), SizeIs(8));
  EXPECT_EQ(cache->SetBudget(1).code(), absl::StatusCode::kResourceExhausted);
}

TEST(ExpertCacheTest, ShrinkingLeavesPinnedSlotsUntilTheirPinsGo) {
  auto cache = MakeCache(OneLayer(8, 8));
  {
    const LayerDemand held = Use(*cache, 0, {0, 1, 2, 3, 4, 5, 6, 7});
    ASSERT_TRUE(cache->SetBudget(2).ok());
    EXPECT_THAT(Residents(*cache, 0, 8), SizeIs(8));
  }
  cache->BeginStep();
  EXPECT_THAT(Residents(*cache, 0, 8), SizeIs(1));
  EXPECT_THAT(Demand(*cache, 0, {0, 1, 2, 3, 4, 5, 6, 7}).grants, SizeIs(2));
}

TEST(ExpertCacheTest, GrowingBeyondTheReservedSlotsIsRefused) {
  ExpertCacheOptions options = OneLayer(8, 4);
  options.max_slots = 6;
  auto cache = MakeCache(options);
  EXPECT_TRUE(cache->SetBudget(6).ok());
  EXPECT_EQ(cache->SetBudget(7).code(), absl::StatusCode::kInvalidArgument);
}

TEST(ExpertCacheTest, StatsReportFloorsBytesAndStalls) {
  auto cache = MakeCache({.experts_per_layer = {8, 0, 8}, .top_k = 2, .num_slots = 10});
  cache->CountBytes(2, BytePath::kDisk, 100);
  cache->CountBytes(2, BytePath::kDisk, 20);
  cache->CountStall(2, 0.5);
  const CacheStats stats = cache->Stats();
  EXPECT_EQ(stats.policy, "recency-frequency");
  EXPECT_EQ(stats.num_slots, 10);
  EXPECT_EQ(stats.layers[0].floor, 4);
  EXPECT_EQ(stats.layers[1].floor, 0);
  EXPECT_EQ(stats.layers[2].bytes_total[0], 120);
  EXPECT_EQ(stats.layers[2].stall_seconds_total, 0.5);
  cache->ResetCounters();
  EXPECT_EQ(cache->Stats().layers[2].bytes_total[0], 0);
}

TEST(ExpertCacheTest, PerExpertStatsShowTokensAndResidency) {
  auto cache = MakeCache(OneLayer(4, 4));
  Use(*cache, 0, {1, 3});
  Use(*cache, 0, {3});
  const ExpertStats stats = cache->PerExpertStats();
  EXPECT_THAT(stats.tokens_total[0], ElementsAre(0, 1, 0, 2));
  EXPECT_THAT(stats.resident[0], ElementsAre(0, 1, 0, 1));
}

}  // namespace
}  // namespace moed::cache
