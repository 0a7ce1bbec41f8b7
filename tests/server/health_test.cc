#include "server/health.h"

#include <gtest/gtest.h>

namespace moed::server {
namespace {

const absl::Time kNow = absl::FromUnixSeconds(1'000'000);

engine::EngineSnapshot ProgressedAt(absl::Time time) {
  engine::EngineSnapshot snapshot;
  snapshot.last_progress = time;
  return snapshot;
}

TEST(HealthTest, LoadingIsAliveButNotReady) {
  EXPECT_EQ(EvaluateHealth(nullptr, kNow), (Health{.live = true, .ready = false}));
}

TEST(HealthTest, ProgressMakesReady) {
  const auto snapshot = ProgressedAt(kNow - absl::Seconds(1));
  EXPECT_EQ(EvaluateHealth(&snapshot, kNow), (Health{.live = true, .ready = true}));
}

TEST(HealthTest, StuckOrFailedEngineIsNeither) {
  const auto stuck = ProgressedAt(kNow - kStuckAfter - absl::Seconds(1));
  EXPECT_EQ(EvaluateHealth(&stuck, kNow), Health{});
  auto failed = ProgressedAt(kNow);
  failed.failed = true;
  EXPECT_EQ(EvaluateHealth(&failed, kNow), Health{});
}

}  // namespace
}  // namespace moed::server
