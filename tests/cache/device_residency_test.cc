#include "cache/device_residency.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
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

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Not;

class DeviceResidencyTest : public ::testing::Test {
 protected:
  void Start(std::vector<int> experts_per_layer, int num_slots) {
    experts_per_layer_ = std::move(experts_per_layer);
    cache_ = *ExpertCache::Create({.experts_per_layer = experts_per_layer_,
                                   .top_k = 2,
                                   .num_slots = num_slots,
                                   .driver = CacheDriver::kDevice});
    arena_ = std::make_unique<ReferenceArena>(num_slots);
    device_ = std::make_unique<SimulatedDevice>(experts_per_layer_, arena_.get());
  }

  std::optional<TableUpdate> Publish() {
    TableUpdate update;
    if (!cache_->device()->Publish(&update)) return std::nullopt;
    return update;
  }
  // Plans, runs and replays one step; returns what each expert's use was.
  std::vector<DeviceUseKind> Step(const std::vector<ExpertKey>& experts) {
    return Run(Publish(), experts);
  }
  std::vector<DeviceUseKind> Run(const std::optional<TableUpdate>& update,
                                 const std::vector<ExpertKey>& experts) {
    device_->Launch(update, experts);
    return ReplayOne();
  }
  std::vector<DeviceUseKind> ReplayOne() {
    const DeviceTrace trace = device_->RunOne();
    EXPECT_TRUE(cache_->device()->Replay(trace).ok());
    std::vector<DeviceUseKind> kinds;
    for (const DeviceUse& use : trace.uses) kinds.push_back(use.kind);
    return kinds;
  }
  static std::vector<TableEditKind> KindsOf(const std::optional<TableUpdate>& update) {
    std::vector<TableEditKind> kinds;
    if (!update.has_value()) return kinds;
    for (const TableEdit& edit : update->edits) kinds.push_back(edit.kind);
    return kinds;
  }
  // Expert 0 in the only slot of the only layer, long unused.
  void StartWithAColdResident() {
    Start({8}, 1);
    Step({{0, 0}});
    Step({{0, 0}});
    for (int i = 0; i < 200; ++i) Step({});
  }

  std::vector<int> experts_per_layer_;
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

TEST_F(DeviceResidencyTest, VictimServesHitsUntilItsSlotIsFilled) {
  StartWithAColdResident();
  Step({{0, 1}});  // now hotter than expert 0
  const std::optional<TableUpdate> offering = Publish();
  ASSERT_THAT(KindsOf(offering), ElementsAre(TableEditKind::kAllowFill, TableEditKind::kOffer));
  EXPECT_EQ(offering->edits[1].expert, 0);
  EXPECT_FALSE(cache_->resident({0, 0})) << "so that the host does not pin it";
  EXPECT_THAT(Run(offering, {{0, 0}, {0, 1}}),
              ElementsAre(DeviceUseKind::kHit, DeviceUseKind::kCold))
      << "a slot that the step reads is not filled";
  EXPECT_EQ(cache_->Stats().layers[0].evictions_total, 0);
  EXPECT_THAT(Run(std::nullopt, {{0, 1}}), ElementsAre(DeviceUseKind::kFilled));
  EXPECT_EQ(cache_->Stats().layers[0].evictions_total, 1);
  EXPECT_THAT(Run(std::nullopt, {{0, 0}, {0, 1}}),
              ElementsAre(DeviceUseKind::kCold, DeviceUseKind::kHit));
}

TEST_F(DeviceResidencyTest, VictimThatIsUsedAgainKeepsItsSlot) {
  StartWithAColdResident();
  Step({{0, 1}});
  EXPECT_THAT(Step({{0, 0}}), ElementsAre(DeviceUseKind::kHit));  // while on offer
  const std::optional<TableUpdate> withdrawing = Publish();
  EXPECT_THAT(KindsOf(withdrawing), Contains(TableEditKind::kWithdraw));
  EXPECT_EQ(cache_->device()->retiring_slots(), 1);
  EXPECT_THAT(Run(withdrawing, {{0, 0}, {0, 1}}),
              ElementsAre(DeviceUseKind::kHit, DeviceUseKind::kCold));
  EXPECT_EQ(cache_->device()->retiring_slots(), 0);
  EXPECT_TRUE(cache_->resident({0, 0}));
  EXPECT_EQ(cache_->Stats().layers[0].evictions_total, 0);
}

TEST_F(DeviceResidencyTest, SlotThatIsFilledBeforeItsWithdrawalIsSeenStaysFilled) {
  StartWithAColdResident();
  Step({{0, 1}});
  Step({{0, 0}});
  device_->Launch(std::nullopt, {{0, 1}});
  device_->Launch(Publish(), {{0, 0}, {0, 1}});  // withdraws
  EXPECT_THAT(ReplayOne(), ElementsAre(DeviceUseKind::kFilled));
  EXPECT_THAT(ReplayOne(), ElementsAre(DeviceUseKind::kCold, DeviceUseKind::kHit));
  EXPECT_TRUE(cache_->resident({0, 1}));
  EXPECT_FALSE(cache_->resident({0, 0}));
}

TEST_F(DeviceResidencyTest, SlotOfAnotherLayerIsOfferedOnlyAfterATraceShowsItsEviction) {
  Start({8, 8}, 3);
  for (int i = 0; i < 3; ++i) Step({{0, 0}, {0, 1}, {1, 0}});
  std::optional<TableUpdate> update;
  for (int i = 0; i < 1000; ++i) {
    update = Publish();
    const std::vector<TableEditKind> kinds = KindsOf(update);
    if (std::find(kinds.begin(), kinds.end(), TableEditKind::kEvict) != kinds.end()) break;
    Run(update, {{1, 0}, {1, 1}});
  }
  ASSERT_THAT(KindsOf(update), Contains(TableEditKind::kEvict));
  EXPECT_EQ(cache_->device()->retiring_slots(), 1);
  EXPECT_THAT(KindsOf(Publish()), Not(Contains(TableEditKind::kOffer)));
  EXPECT_THAT(Run(update, {{1, 1}}), ElementsAre(DeviceUseKind::kCold));
  EXPECT_EQ(cache_->device()->retiring_slots(), 0);
  EXPECT_THAT(Step({{1, 1}}), ElementsAre(DeviceUseKind::kFilled));
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
  for (int e = 0; e < 8; ++e) entries += device_->table().entry({0, e}).slot >= 0 ? 1 : 0;
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
