#include "runtime/model/expert_budget.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moed::model {
namespace {

using ::testing::HasSubstr;
using Kind = ExpertBudget::Kind;

TEST(ExpertBudgetTest, ParsesEveryForm) {
  const struct {
    const char* text;
    Kind kind;
    double amount;
  } cases[] = {
      {"auto", Kind::kAuto, 0},
      {"6GiB", Kind::kBytes, 6.0 * (1 << 30)},
      {"1.5MiB", Kind::kBytes, 1.5 * (1 << 20)},
      {"512KiB", Kind::kBytes, 512.0 * 1024},
      {"2TiB", Kind::kBytes, 2.0 * (1ull << 40)},
      {"12.5%", Kind::kPercent, 12.5},
      {"0%", Kind::kPercent, 0},
      {"100%", Kind::kPercent, 100},
      {"96slots", Kind::kSlots, 96},
  };
  for (const auto& test : cases) {
    const auto budget = ParseExpertBudget(test.text);
    ASSERT_TRUE(budget.ok()) << test.text;
    EXPECT_EQ(budget->kind, test.kind) << test.text;
    EXPECT_EQ(budget->amount, test.amount) << test.text;
  }
}

TEST(ExpertBudgetTest, RefusesEverythingElse) {
  for (const char* text :
       {"", "6", "GiB", "6 GiB", "6GB", "-1GiB", "nan%", "101%", "%", "1.5slots", "slots", "1e3MiB",
        "0x10slots", "inf%", "Auto", "6GiBGiB", "1.2.3GiB", ".GiB"}) {
    const auto budget = ParseExpertBudget(text);
    EXPECT_EQ(budget.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(budget.status().message()), HasSubstr("96slots"));
  }
}

constexpr ExpertDemand kDemand = {
    .num_experts = 64, .expert_bytes = 1 << 20, .top_k = 8, .available_bytes = 40 << 20};

TEST(ExpertBudgetTest, BuysSlots) {
  const struct {
    ExpertBudget budget;
    int64_t available_mib;
    int slots;
  } cases[] = {
      {{Kind::kAuto, 0}, 1000, 64},  // all there are
      {{Kind::kAuto, 0}, 40, 40},    // what is left
      {{Kind::kBytes, 10.9 * (1 << 20)}, 40, 10},
      {{Kind::kBytes, 1e15}, 1000, 64},
      {{Kind::kPercent, 12.5}, 40, 8},
      {{Kind::kPercent, 100}, 64, 64},
      {{Kind::kSlots, 8}, 8, 8},
      {{Kind::kSlots, 1e9}, 64, 64},
  };
  for (const auto& test : cases) {
    ExpertDemand demand = kDemand;
    demand.available_bytes = test.available_mib << 20;
    const auto slots = ResolveExpertSlots(test.budget, demand);
    ASSERT_TRUE(slots.ok()) << slots.status();
    EXPECT_EQ(*slots, test.slots);
  }
}

TEST(ExpertBudgetTest, RefusesFewerThanTopKSlotsAndNamesTheSmallestBudget) {
  for (const ExpertBudget& budget :
       {ExpertBudget{Kind::kSlots, 7}, ExpertBudget{Kind::kPercent, 12.4},
        ExpertBudget{Kind::kBytes, 0}, ExpertBudget{Kind::kBytes, 8.0 * (1 << 20) - 1}}) {
    const auto slots = ResolveExpertSlots(budget, kDemand);
    EXPECT_EQ(slots.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(slots.status().message()), HasSubstr("8slots (8.0 MiB)"));
  }
}

TEST(ExpertBudgetTest, RefusesMoreThanIsAvailable) {
  const auto slots = ResolveExpertSlots({Kind::kPercent, 100}, kDemand);
  EXPECT_EQ(slots.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(slots.status().message()), HasSubstr("takes 64 MiB, but 40 MiB"));
}

}  // namespace
}  // namespace moed::model
