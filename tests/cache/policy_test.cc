#include "cache/policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <tuple>
#include <vector>

namespace moed::cache {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr PolicyKind kAllPolicies[] = {PolicyKind::kRecencyFrequency, PolicyKind::kLru,
                                       PolicyKind::kLfu, PolicyKind::kStatic};

ExpertView Expert(int layer, int expert, int64_t last_use_step, double heat, bool keep = false) {
  return {.key = {layer, expert}, .last_use_step = last_use_step, .heat = heat, .keep = keep};
}

// One layer, full: floors do not matter.
struct OneLayer {
  std::vector<ExpertView> candidates;
  std::vector<ExpertView> evictable;
  int free_slots = 0;
  std::vector<int32_t> resident = {8};
  std::vector<int32_t> floor = {4};

  CacheView View() const {
    return {.layer = 0,
            .candidates = candidates,
            .evictable = evictable,
            .free_slots = free_slots,
            .layer_resident = resident,
            .layer_floor = floor};
  }
};

TEST(PolicyTest, NamesRoundTrip) {
  for (PolicyKind kind : kAllPolicies) {
    absl::StatusOr<PolicyKind> parsed = ParsePolicy(PolicyName(kind));
    ASSERT_TRUE(parsed.ok());
    EXPECT_EQ(*parsed, kind);
  }
}

TEST(PolicyTest, UnknownNameListsTheKnownOnes) {
  const absl::Status status = ParsePolicy("fifo").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("recency-frequency, lru, lfu, static"));
}

TEST(PolicyTest, EveryPolicyFillsFreeSlotsWithTheHottestFirst) {
  const OneLayer cache{.candidates = {Expert(0, 1, 1, 0.5), Expert(0, 2, 2, 1.5)},
                       .evictable = {Expert(0, 3, 9, 9)},
                       .free_slots = 2};
  for (PolicyKind kind : kAllPolicies) {
    const Plan plan = MakePlan(kind, cache.View());
    EXPECT_THAT(plan.admissions, ::testing::UnorderedElementsAre(0, 1)) << PolicyName(kind);
    EXPECT_THAT(plan.evictions, IsEmpty()) << PolicyName(kind);
  }
  EXPECT_THAT(MakePlan(PolicyKind::kRecencyFrequency, cache.View()).admissions, ElementsAre(1, 0));
}

TEST(RecencyFrequencyPolicyTest, AdmitsOnlyWhatIsHotterThanItsVictim) {
  const OneLayer cache{
      .candidates = {Expert(0, 1, 9, 1.0), Expert(0, 2, 9, 3.0), Expert(0, 3, 9, 2.0)},
      .evictable = {Expert(0, 4, 8, 2.5), Expert(0, 5, 7, 0.5), Expert(0, 6, 6, 1.5)}};
  const Plan plan = MakePlan(PolicyKind::kRecencyFrequency, cache.View());
  // 3.0 displaces 0.5, 2.0 displaces 1.5, 1.0 meets 2.5 and is refused.
  EXPECT_THAT(plan.admissions, ElementsAre(1, 2));
  EXPECT_THAT(plan.evictions, ElementsAre(1, 2));
}

TEST(RecencyFrequencyPolicyTest, RecentUseAddsToHeat) {
  OneLayer cache{.candidates = {Expert(0, 1, 9, 1.0)}, .evictable = {Expert(0, 2, 1, 3.0)}};
  EXPECT_THAT(MakePlan(PolicyKind::kRecencyFrequency, cache.View()).admissions, IsEmpty());
  cache.candidates[0].recent_heat = 2.5;
  EXPECT_THAT(MakePlan(PolicyKind::kRecencyFrequency, cache.View()).admissions, ElementsAre(0));
  EXPECT_THAT(MakePlan(PolicyKind::kLfu, cache.View()).evictions, ElementsAre(0));
}

TEST(RecencyFrequencyPolicyTest, EqualHeatChangesNothing) {
  const OneLayer cache{.candidates = {Expert(0, 1, 9, 1.0)}, .evictable = {Expert(0, 2, 1, 1.0)}};
  EXPECT_THAT(MakePlan(PolicyKind::kRecencyFrequency, cache.View()).admissions, IsEmpty());
}

TEST(RecencyFrequencyPolicyTest, AdmitsOnlyWhatIsHotterByMoreThanChance) {
  OneLayer cache{.candidates = {Expert(0, 1, 9, 0)}, .evictable = {Expert(0, 2, 1, 0)}};
  const auto admits = [&](double miss, double resident, double uses_per_heat) {
    cache.candidates[0].heat = miss / uses_per_heat;
    cache.evictable[0].heat = resident / uses_per_heat;
    CacheView view = cache.View();
    view.uses_per_heat = uses_per_heat;
    return !MakePlan(PolicyKind::kRecencyFrequency, view).admissions.empty();
  };
  for (const double scale : {1.0, 0.01}) {
    // A single use, in place of what is not used any more.
    EXPECT_TRUE(admits(1, 0, scale));
    EXPECT_FALSE(admits(0.4, 0, scale));
    // The standard error of 8 and 8 is 2.8, of 10 and 8 3, of 12 and 8 3.2.
    EXPECT_FALSE(admits(10, 8, scale));
    EXPECT_TRUE(admits(12, 8, scale));
    EXPECT_FALSE(admits(8, 12, scale));
  }
  cache.candidates[0].keep = true;
  EXPECT_TRUE(admits(0, 50, 1));
}

TEST(LruPolicyTest, EvictsLeastRecentlyUsedWhateverItsHeat) {
  const OneLayer cache{.candidates = {Expert(0, 1, 9, 0.1)},
                       .evictable = {Expert(0, 2, 5, 0.2), Expert(0, 3, 4, 7.0)}};
  const Plan plan = MakePlan(PolicyKind::kLru, cache.View());
  EXPECT_THAT(plan.admissions, ElementsAre(0));
  EXPECT_THAT(plan.evictions, ElementsAre(1));
}

TEST(LfuPolicyTest, EvictsColdestEvenForSomethingColder) {
  const OneLayer cache{.candidates = {Expert(0, 1, 9, 0.1)},
                       .evictable = {Expert(0, 2, 5, 0.2), Expert(0, 3, 4, 7.0)}};
  const Plan plan = MakePlan(PolicyKind::kLfu, cache.View());
  EXPECT_THAT(plan.admissions, ElementsAre(0));
  EXPECT_THAT(plan.evictions, ElementsAre(0));
}

TEST(StaticPolicyTest, EvictsOnlyForAKeptExpert) {
  const OneLayer cache{.candidates = {Expert(0, 1, 9, 9.0), Expert(0, 2, 9, 0.1, /*keep=*/true)},
                       .evictable = {Expert(0, 3, 1, 0.2), Expert(0, 4, 2, 0.1)}};
  const Plan plan = MakePlan(PolicyKind::kStatic, cache.View());
  EXPECT_THAT(plan.admissions, ElementsAre(1));
  EXPECT_THAT(plan.evictions, ElementsAre(0));
}

TEST(PolicyTest, KeptExpertIsAdmittedBeforeAnyOther) {
  const OneLayer cache{.candidates = {Expert(0, 1, 9, 9.0), Expert(0, 2, -1, 0, /*keep=*/true)},
                       .evictable = {Expert(0, 3, 8, 5.0)}};
  for (PolicyKind kind : kAllPolicies) {
    EXPECT_THAT(MakePlan(kind, cache.View()).admissions, ElementsAre(1)) << PolicyName(kind);
  }
}

TEST(PolicyTest, LayerAtItsFloorLosesNoSlotToAnother) {
  OneLayer cache{.candidates = {Expert(0, 1, 9, 5.0)},
                 .evictable = {Expert(0, 2, 8, 2.0), Expert(1, 3, 1, 0.1)},
                 .resident = {4, 4},
                 .floor = {4, 4}};
  EXPECT_THAT(MakePlan(PolicyKind::kRecencyFrequency, cache.View()).evictions, ElementsAre(0));
  cache.resident[1] = 5;
  EXPECT_THAT(MakePlan(PolicyKind::kRecencyFrequency, cache.View()).evictions, ElementsAre(1));
}

TEST(PolicyTest, LayerBelowItsFloorIsGivenAnothersSlotThoughColder) {
  const OneLayer cache{
      .candidates = {Expert(0, 1, 9, 0.1), Expert(0, 2, 9, 0.2)},
      .evictable = {Expert(0, 3, 8, 0.5), Expert(1, 4, 8, 2.0), Expert(1, 5, 8, 3.0)},
      .resident = {3, 9},
      .floor = {4, 4}};
  const Plan plan = MakePlan(PolicyKind::kRecencyFrequency, cache.View());
  EXPECT_THAT(plan.admissions, ElementsAre(1));
  EXPECT_THAT(plan.evictions, ElementsAre(1));
}

TEST(PolicyTest, WorthsOfARowAreThoseOfItsExperts) {
  const std::vector<int64_t> last_use_step = {3, -1, 7, 5};
  const std::vector<double> heat = {1.5, 0, 2, 0.25};
  const std::vector<double> recent_heat = {0.5, 0, 1, 4};
  const std::vector<uint8_t> keep = {0, 1, 0, 0};
  for (PolicyKind kind : kAllPolicies) {
    for (const std::vector<uint8_t>& kept : {keep, std::vector<uint8_t>{}}) {
      std::vector<double> worths(4);
      Worths(
          kind,
          {.last_use_step = last_use_step, .heat = heat, .recent_heat = recent_heat, .keep = kept},
          worths);
      for (int i = 0; i < 4; ++i) {
        const ExpertView expert = {.key = {0, i},
                                   .last_use_step = last_use_step[i],
                                   .heat = heat[i],
                                   .recent_heat = recent_heat[i],
                                   .keep = !kept.empty() && kept[i] != 0};
        EXPECT_EQ(worths[i], Worth(kind, expert)) << PolicyName(kind) << " expert " << i;
      }
    }
  }
}

// The rules of policy.h by exhaustive search, one admission at a time.
Plan NaivePlan(PolicyKind kind, const CacheView& view) {
  const auto rank = [&](const ExpertView& e) {
    return std::tuple(Worth(kind, e), e.last_use_step, e.key);
  };
  std::vector<int32_t> resident(view.layer_resident.begin(), view.layer_resident.end());
  std::vector<bool> gone(view.evictable.size(), false);
  std::vector<int32_t> order(view.candidates.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return rank(view.candidates[a]) > rank(view.candidates[b]);
  });
  Plan plan;
  for (int32_t candidate : order) {
    if (plan.admissions.size() - plan.evictions.size() < static_cast<size_t>(view.free_slots)) {
      plan.admissions.push_back(candidate);
      ++resident[view.layer];
      continue;
    }
    int32_t victim = -1;
    int32_t donor = -1;
    for (int32_t i = 0; i < static_cast<int32_t>(view.evictable.size()); ++i) {
      const ExpertView& e = view.evictable[i];
      const bool own = e.key.layer == view.layer;
      if (gone[i] || (!own && resident[e.key.layer] <= view.layer_floor[e.key.layer])) continue;
      if (victim < 0 || rank(e) < rank(view.evictable[victim])) victim = i;
      if (!own && (donor < 0 || rank(e) < rank(view.evictable[donor]))) donor = i;
    }
    const bool owed = resident[view.layer] < view.layer_floor[view.layer] && donor >= 0;
    if (owed) victim = donor;
    if (victim < 0) break;
    const double miss = Worth(kind, view.candidates[candidate]);
    const double least = Worth(kind, view.evictable[victim]);
    double chance = 0;
    if (view.uses_per_heat > 0) chance = std::sqrt((miss + least) / 2 / view.uses_per_heat);
    const bool worth_more = view.candidates[candidate].keep || miss > least + chance;
    const bool gated = kind == PolicyKind::kRecencyFrequency || kind == PolicyKind::kStatic;
    if (!owed && gated && !worth_more) break;
    gone[victim] = true;
    --resident[view.evictable[victim].key.layer];
    ++resident[view.layer];
    plan.admissions.push_back(candidate);
    plan.evictions.push_back(victim);
  }
  return plan;
}

TEST(PolicyTest, AgreesWithExhaustiveSearchOnRandomViews) {
  std::mt19937 random(11);
  for (int round = 0; round < 20000; ++round) {
    // Mostly few experts of equal heats; sometimes many, whose heats differ or do not.
    const int experts = round % 500 == 0 ? 500 : round % 50 == 1 ? 120 : 6;
    const uint32_t heats = experts == 6 || round % 100 == 1 ? 4 : 1 << 20;
    std::vector<ExpertView> candidates;
    std::vector<ExpertView> evictable;
    std::vector<int32_t> resident(3);
    std::vector<int32_t> floor(3);
    for (int layer = 0; layer < 3; ++layer) {
      floor[layer] = random() % 5;
      for (int expert = 0; expert < experts; ++expert) {
        const ExpertView e =
            Expert(layer, expert, random() % 8, random() % heats, random() % 16 == 0);
        const int place = random() % 3;
        if (place == 0 && layer == 1) candidates.push_back(e);
        if (place == 1) ++resident[layer];
        if (place == 1 && !e.keep) evictable.push_back(e);
      }
    }
    const CacheView view{.layer = 1,
                         .candidates = candidates,
                         .evictable = evictable,
                         .free_slots = static_cast<int>(random() % 3),
                         .layer_resident = resident,
                         .layer_floor = floor,
                         .uses_per_heat = round % 3 == 0 ? 0.0 : round % 3 * 0.7};
    for (PolicyKind kind : kAllPolicies) {
      const Plan plan = MakePlan(kind, view);
      const Plan expected = NaivePlan(kind, view);
      ASSERT_EQ(plan.admissions, expected.admissions) << PolicyName(kind) << " round " << round;
      ASSERT_EQ(plan.evictions, expected.evictions) << PolicyName(kind) << " round " << round;
    }
  }
}

}  // namespace
}  // namespace moed::cache
