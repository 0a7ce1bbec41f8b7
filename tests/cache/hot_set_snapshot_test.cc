#include "cache/hot_set_snapshot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "cache/expert_cache.h"
#include "cache/routing_replay.h"

namespace moed::cache {
namespace {

using ::testing::ElementsAre;

const std::vector<int> kShape = {4, 0, 3};
const HotSet kHotSet = {.heat = {0, 1.5F, 0.25F, 8, 0, 2, 3},
                        .residents = {{0, 1}, {0, 3}, {2, 1}}};

TEST(HotSetSnapshotTest, ComesBackWithTheHottestResidentFirst) {
  const std::string bytes = SerializeHotSet(kHotSet, kShape, "demo");
  const absl::StatusOr<HotSet> parsed = ParseHotSet(bytes, kShape, "demo");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->heat, kHotSet.heat);
  EXPECT_THAT(parsed->residents, ElementsAre(ExpertKey{0, 3}, ExpertKey{2, 1}, ExpertKey{0, 1}));
}

TEST(HotSetSnapshotTest, EveryTruncationIsRefused) {
  const std::string bytes = SerializeHotSet(kHotSet, kShape, "demo");
  for (size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_EQ(ParseHotSet(bytes.substr(0, length), kShape, "demo").status().code(),
              absl::StatusCode::kDataLoss)
        << length;
  }
  EXPECT_FALSE(ParseHotSet(bytes + "x", kShape, "demo").ok());
}

TEST(HotSetSnapshotTest, EveryFlippedBitIsRefused) {
  const std::string bytes = SerializeHotSet(kHotSet, kShape, "demo");
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    std::string damaged = bytes;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    EXPECT_FALSE(ParseHotSet(damaged, kShape, "demo").ok()) << bit;
  }
}

TEST(HotSetSnapshotTest, ForeignModelOrShapeIsRefused) {
  const std::string bytes = SerializeHotSet(kHotSet, kShape, "demo");
  EXPECT_EQ(ParseHotSet(bytes, kShape, "other").status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ParseHotSet(bytes, std::vector<int>{3, 0, 4}, "demo").status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(HotSetSnapshotTest, RestoredCacheHitsAtOnce) {
  const ExpertCacheOptions options{
      .experts_per_layer = {16, 16}, .top_k = 2, .num_slots = 17};  // 16 residents
  std::vector<RoutingTrace> traces;
  std::mt19937 random(3);
  for (int step = 0; step < 200; ++step) {
    RoutingTrace trace;
    for (int layer = 0; layer < 2; ++layer) {
      const int hot = static_cast<int>(random() % 4);
      trace.layers.push_back({layer, {{hot, 1, 1}, {hot + 8, 1, 1}}});
    }
    traces.push_back(trace);
  }
  std::unique_ptr<ExpertCache> before = *ExpertCache::Create(options);
  Replay(traces, *before);
  const std::string bytes =
      SerializeHotSet(before->SaveHotSet(), options.experts_per_layer, "demo");

  std::unique_ptr<ExpertCache> after = *ExpertCache::Create(options);
  const absl::StatusOr<HotSet> hot_set = ParseHotSet(bytes, options.experts_per_layer, "demo");
  ASSERT_TRUE(hot_set.ok()) << hot_set.status();
  after->RestoreHeat(*hot_set);
  for (ExpertKey key : hot_set->residents) {
    std::optional<Grant> grant = after->Prefetch(key);
    ASSERT_TRUE(grant.has_value());
    after->Filled(grant->slot, grant->generation);
  }
  EXPECT_EQ(Replay(traces, *after).misses, 0);
}

}  // namespace
}  // namespace moed::cache
