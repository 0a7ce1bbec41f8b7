#include "runtime/model/expert_traffic.h"

#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace moed::model {
namespace {

constexpr int64_t kExpertBytes = 1000;

StepInput InputOf(const std::vector<int>& chunk_tokens) {
  StepInput input;
  for (int tokens : chunk_tokens) input.chunks.push_back({.num_tokens = tokens});
  return input;
}

TEST(ExpertTrafficTest, DividesAnExpertAmongTheSequencesThatChoseIt) {
  // Sequence 0 has tokens 0 and 1, sequence 1 token 2; two experts a token.
  ExpertTraffic traffic(kExpertBytes);
  traffic.BeginStep(InputOf({2, 1}));
  ExpertGroups groups(8, 2, 3);
  groups.Build(std::vector<int32_t>{0, 1, 0, 2, 0, 3});
  traffic.Charge(groups, {.hits = {0, 3}, .misses = {1, 2}, .stall_seconds = 0.5});

  const ExpertShare& first = traffic.shares()[0];
  EXPECT_DOUBLE_EQ(first.hits, 0.5);
  EXPECT_DOUBLE_EQ(first.misses, 2);
  EXPECT_DOUBLE_EQ(first.bytes_paged, 2 * kExpertBytes);
  EXPECT_DOUBLE_EQ(first.stall_seconds, 0.5);
  const ExpertShare& second = traffic.shares()[1];
  EXPECT_DOUBLE_EQ(second.hits, 1.5);
  EXPECT_DOUBLE_EQ(second.misses, 0);
  EXPECT_DOUBLE_EQ(second.stall_seconds, 0);
}

TEST(ExpertTrafficTest, WeighsASequenceTheSameWhateverItsTokens) {
  ExpertTraffic traffic(kExpertBytes);
  traffic.BeginStep(InputOf({3, 1}));
  ExpertGroups groups(4, 1, 4);
  groups.Build(std::vector<int32_t>{2, 2, 0, 2});
  const auto loads = traffic.Loads(groups);
  ASSERT_EQ(loads.size(), 2u);
  EXPECT_EQ(loads[0].expert, 0);
  EXPECT_EQ(loads[0].tokens, 1);
  EXPECT_FLOAT_EQ(loads[0].weight, 1.0f / 3);
  EXPECT_EQ(loads[1].expert, 2);
  EXPECT_EQ(loads[1].tokens, 3);
  EXPECT_FLOAT_EQ(loads[1].weight, 2.0f / 3 + 1);
}

TEST(ExpertTrafficTest, SharesAddUpToTheTotals) {
  constexpr int kExperts = 32, kTopK = 4;
  std::mt19937 random(1);
  ExpertTraffic traffic(kExpertBytes);
  ExpertGroups groups(kExperts, kTopK, 200);
  for (int step = 0; step < 30; ++step) {
    std::vector<int> chunk_tokens(1 + random() % 9);
    int tokens = 0;
    for (int& count : chunk_tokens) tokens += count = 1 + static_cast<int>(random() % 20);
    traffic.BeginStep(InputOf(chunk_tokens));
    double hits = 0, misses = 0, stall = 0;
    for (int layer = 0; layer < 5; ++layer) {
      std::vector<int32_t> ids(tokens * kTopK);
      for (int32_t& id : ids) id = static_cast<int32_t>(random() % kExperts);
      groups.Build(ids);
      LayerTraffic layer_traffic;
      for (int expert : groups.experts()) {
        (random() % 2 == 0 ? layer_traffic.hits : layer_traffic.misses).push_back(expert);
      }
      if (!layer_traffic.misses.empty()) layer_traffic.stall_seconds = 0.01 * (random() % 100);
      traffic.Charge(groups, layer_traffic);
      hits += static_cast<double>(layer_traffic.hits.size());
      misses += static_cast<double>(layer_traffic.misses.size());
      stall += layer_traffic.stall_seconds;
    }
    ExpertShare sum;
    for (const ExpertShare& share : traffic.shares()) {
      sum.hits += share.hits;
      sum.misses += share.misses;
      sum.bytes_paged += share.bytes_paged;
      sum.stall_seconds += share.stall_seconds;
    }
    EXPECT_NEAR(sum.hits, hits, 1e-9 * (1 + hits));
    EXPECT_NEAR(sum.misses, misses, 1e-9 * (1 + misses));
    EXPECT_NEAR(sum.bytes_paged, misses * kExpertBytes, 1e-6 * (1 + misses));
    EXPECT_NEAR(sum.stall_seconds, stall, 1e-9 * (1 + stall));
  }
}

}  // namespace
}  // namespace moed::model
