#include "cache/device_residency.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "cache/expert_cache.h"
#include "tests/cache/reference_arena.h"
#include "tests/cache/simulated_device.h"

namespace moed::cache {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class DeviceResidencyTest : public ::testing::Test {
 protected:
  void Start(std::vector<int> experts_per_layer, int num_slots) {
    cache_ = *ExpertCache::Create({.experts_per_layer = std::move(experts_per_layer),
                                   .top_k = 2,
                                   .num_slots = num_slots,
                                   .driver = CacheDriver::kDevice});
    arena_ = std::make_unique<ReferenceArena>(num_slots);
    device_ = std::make_unique<SimulatedDevice>(arena_.get());
  }

  std::optional<TableUpdate> Publish() {
    TableUpdate update;
    if (!cache_->device()->Publish(&update)) return std::nullopt;
    return update;
  }
  // Plans, runs and replays one step; returns what each expert's use was.
  std::vector<DeviceUseKind> Step(const std::vector<ExpertKey>& experts) {
    device_->Launch(Publish(), experts);
    const DeviceTrace trace = device_->RunOne();
    EXPECT_TRUE(cache_->device()->Replay(trace).ok());
    std::vector<DeviceUseKind> kinds;
    for (const DeviceUse& use : trace.uses) kinds.push_back(use.kind);
    return kinds;
  }

  std::unique_ptr<ExpertCache> cache_;
  std::unique_ptr<ReferenceArena> arena_;
  std::unique_ptr<SimulatedDevice> device_;
};

TEST_F(DeviceResidencyTest, MissIsAllowedThenFilledOnReadThenHits) {
  Start({8}, 4);
  EXPECT_THAT(Step({{0, 3}}), ElementsAre(DeviceUseKind::kCold));
  EXPECT_THAT(Step({{0, 3}}), ElementsAre(DeviceUseKind::kFilled));
  EXPECT_THAT(Step({{0, 3}}), ElementsAre(DeviceUseKind::kHit));
  EXPECT_TRUE(cache_->resident({0, 3}));
  const LayerStats stats = cache_->Stats().layers[0];
  EXPECT_EQ(stats.misses_total, 2);
  EXPECT_EQ(stats.hits_total, 1);
  EXPECT_EQ(stats.admissions_total, 1);
}

TEST_F(DeviceResidencyTest, WithoutSlotsEverythingStaysCold) {
  Start({8}, 0);
  for (int i = 0; i < 5; ++i) EXPECT_THAT(Step({{0, 3}}), ElementsAre(DeviceUseKind::kCold));
  EXPECT_FALSE(Publish().has_value());
}

TEST_F(DeviceResidencyTest, ColdExpertGetsNoPermissionOverHotterResidents) {
  Start({8}, 2);
  for (int i = 0; i < 10; ++i) Step({{0, 0}, {0, 1}});
  const int64_t refused = cache_->Stats().layers[0].refused_admissions_total;
  EXPECT_THAT(Step({{0, 7}}), ElementsAre(DeviceUseKind::kCold));
  EXPECT_FALSE(Publish().has_value());
  EXPECT_EQ(cache_->Stats().layers[0].refused_admissions_total, refused + 1);
}

TEST_F(DeviceResidencyTest, EvictedSlotIsReusedOnlyAfterATraceShowsTheEviction) {
  Start({8}, 1);
  Step({{0, 0}});
  Step({{0, 0}});  // fills the only slot
  for (int i = 0; i < 200; ++i) Step({});
  Step({{0, 1}});  // now hotter than expert 0
  std::optional<TableUpdate> evicting = Publish();
  ASSERT_TRUE(evicting.has_value());
  EXPECT_EQ(evicting->edits[0].kind, TableEditKind::kAllowFill);
  EXPECT_EQ(evicting->edits[1],
            (TableEdit{TableEditKind::kEvict, 0, 0, 0, evicting->edits[1].generation}));
  EXPECT_EQ(cache_->device()->retiring_slots(), 1);
  EXPECT_FALSE(Publish().has_value()) << "the slot must not be offered before the eviction is seen";
  device_->Launch(evicting, {{0, 1}});
  EXPECT_TRUE(cache_->device()->Replay(device_->RunOne()).ok());
  EXPECT_EQ(cache_->device()->retiring_slots(), 0);
  EXPECT_THAT(Step({{0, 1}}), ElementsAre(DeviceUseKind::kFilled));
}

// By chance one is always ahead of another; each exchange would cost a fill.
TEST_F(DeviceResidencyTest, ExpertsThatAreUsedAlikeKeepTheirPlaces) {
  constexpr int kExperts = 32;
  constexpr int kSlots = 16;
  Start({kExperts}, kSlots);
  std::mt19937 random(3);
  for (int step = 0; step < 3000; ++step) {
    if (step == 200) cache_->ResetCounters();
    const auto first = static_cast<int>(random() % kExperts);
    const auto second = (first + 1 + static_cast<int>(random() % (kExperts - 1))) % kExperts;
    Step({{0, first}, {0, second}});
  }
  const LayerStats stats = cache_->Stats().layers[0];
  EXPECT_LT(stats.evictions_total, stats.misses_total / 10);  // 15 % if any lead counted
}

TEST_F(DeviceResidencyTest, ExpertFilledByTheHostReachesTheDevice) {
  Start({8}, 2);
  std::optional<Grant> grant = cache_->Prefetch({0, 5});
  ASSERT_TRUE(grant.has_value());
  arena_->StartFill(grant->slot, grant->key, grant->generation);
  arena_->EndFill(grant->slot);
  ASSERT_TRUE(cache_->Filled(grant->slot, grant->generation));
  grant.reset();
  EXPECT_THAT(Step({{0, 5}}), ElementsAre(DeviceUseKind::kHit));
}

TEST_F(DeviceResidencyTest, HostDemandEvictsNothing) {
  Start({8}, 1);
  Step({{0, 0}});
  Step({{0, 0}});
  cache_->BeginStep();
  LayerDemand demand;
  cache_->Demand(0, std::vector<int>{4}, &demand);
  EXPECT_THAT(demand.grants, IsEmpty());
  EXPECT_THAT(demand.deferred, ElementsAre(4));
  EXPECT_TRUE(cache_->resident({0, 0}));
}

TEST_F(DeviceResidencyTest, ShrinkingTakesSlotsBackFromTheDevice) {
  Start({8}, 4);
  for (int i = 0; i < 3; ++i) Step({{0, 0}, {0, 1}, {0, 2}, {0, 3}});
  EXPECT_EQ(cache_->Stats().layers[0].resident, 4);
  ASSERT_TRUE(cache_->SetBudget(1).ok());
  Step({});
  EXPECT_EQ(cache_->Stats().layers[0].resident, 1);
  int entries = 0;
  for (const auto& [key, entry] : device_->table()) entries += entry.slot >= 0 ? 1 : 0;
  EXPECT_EQ(entries, 1);
}

TEST_F(DeviceResidencyTest, TraceThatContradictsTheTableIsAnError) {
  Start({8}, 4);
  Step({{0, 3}});
  Step({{0, 3}});
  const DeviceUse kWrong[] = {
      {.kind = DeviceUseKind::kHit, .layer = 0, .expert = 4, .slot = 0, .generation = 1},
      {.kind = DeviceUseKind::kHit, .layer = 0, .expert = 3, .slot = 0, .generation = 99},
      {.kind = DeviceUseKind::kHit, .layer = 0, .expert = 3, .slot = 77, .generation = 1},
      {.kind = DeviceUseKind::kFilled, .layer = 0, .expert = 5, .slot = 0, .generation = 1},
      {.kind = DeviceUseKind::kCold, .layer = 3, .expert = 0},
  };
  for (const DeviceUse& use : kWrong) {
    const absl::Status status = cache_->device()->Replay(
        {.table_number = cache_->device()->published_number(), .uses = {use}});
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  }
  EXPECT_EQ(cache_->device()->Replay({.table_number = 99}).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(cache_->device()->Replay({.table_number = 0}).code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace moed::cache
