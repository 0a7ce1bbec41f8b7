#include "cache/optimum.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <map>
#include <random>
#include <vector>

namespace moed::cache {
namespace {

// One layer; each step uses a set of experts, one bit each.
std::vector<RoutingTrace> OneLayer(const std::vector<uint32_t>& steps) {
  std::vector<RoutingTrace> traces;
  for (uint32_t used : steps) {
    RoutingTrace trace{.layers = {{.layer = 0, .experts = {}}}};
    for (int expert = 0; expert < 32; ++expert) {
      if ((used >> expert & 1) != 0) trace.layers[0].experts.push_back({expert, 1, 1});
    }
    traces.push_back(trace);
  }
  return traces;
}

TEST(OptimumTest, MissNeedNotBeAdmitted) {
  // 0 1 0 2 0 3 0: one slot keeps expert 0 throughout.
  const HitCount count =
      OptimumPerLayer(ExpertIndex(std::vector<int>{4}), 1, OneLayer({1, 2, 1, 4, 1, 8, 1}));
  EXPECT_EQ(count.hits, 3);
  EXPECT_EQ(count.misses, 4);
}

TEST(OptimumTest, ExpertsOfOneStepAreServedTogether) {
  // {0,1} {0,1} with one slot: one of the two stays.
  EXPECT_EQ(OptimumPerLayer(ExpertIndex(std::vector<int>{2}), 1, OneLayer({3, 3})).hits, 1);
}

TEST(OptimumTest, OnePoolServesTheLayerThatGainsMost) {
  std::vector<RoutingTrace> traces;
  for (int step = 0; step < 10; ++step) {
    traces.push_back({.layers = {{0, {{0, 1, 1}, {1, 1, 1}}}, {1, {{step, 1, 1}}}}});
  }
  const ExpertIndex index(std::vector<int>{2, 10});
  EXPECT_EQ(OptimumPerLayer(index, 1, traces).hits, 9);
  EXPECT_EQ(OptimumOnePool(index, 2, traces).hits, 18);
}

// Every sequence of contents, tried by dynamic programming over the sets that fit.
int64_t BestByExhaustion(const std::vector<uint32_t>& steps, int num_slots) {
  std::map<uint32_t, int64_t> best = {{0, 0}};  // content to most hits so far
  for (uint32_t used : steps) {
    std::map<uint32_t, int64_t> next;
    for (const auto& [content, hits] : best) {
      const uint32_t available = content | used;
      const int64_t now = hits + std::popcount(content & used);
      for (uint32_t kept = available;; kept = (kept - 1) & available) {
        if (std::popcount(kept) <= num_slots) next[kept] = std::max(next[kept], now);
        if (kept == 0) break;
      }
    }
    best = next;
  }
  int64_t most = 0;
  for (const auto& [content, hits] : best) most = std::max(most, hits);
  return most;
}

TEST(OptimumTest, AgreesWithExhaustiveSearch) {
  std::mt19937 random(5);
  const ExpertIndex index(std::vector<int>{6});
  for (int round = 0; round < 60; ++round) {
    std::vector<uint32_t> steps(12);
    for (uint32_t& used : steps) used = (random() & random() & 63) | 1U << random() % 6;
    for (int num_slots = 1; num_slots <= 4; ++num_slots) {
      ASSERT_EQ(OptimumPerLayer(index, num_slots, OneLayer(steps)).hits,
                BestByExhaustion(steps, num_slots))
          << "round " << round << " slots " << num_slots;
    }
  }
}

}  // namespace
}  // namespace moed::cache
