#include "tests/golden/golden_case.h"

#include <algorithm>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moed::testing {
namespace {

TEST(GoldenCaseTest, EveryFamilyAndTheDemoAreThere) {
  EXPECT_THAT(GoldenCaseNames(),
              ::testing::IsSupersetOf({"demo", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe"}));
}

TEST(GoldenCaseTest, ContinuationsAreTheReferencesGreedyTokens) {
  for (const std::string& name : GoldenCaseNames()) {
    SCOPED_TRACE(name);
    const auto golden = LoadGoldenCase(name);
    ASSERT_TRUE(golden.ok()) << golden.status();
    ASSERT_FALSE(golden->prompts.empty());
    for (const GoldenPrompt& prompt : golden->prompts) {
      ASSERT_LE(prompt.first_logits, prompt.prompt_tokens - 1);
      for (int i = prompt.prompt_tokens; i < static_cast<int>(prompt.token_ids.size()); ++i) {
        const auto row = prompt.LogitsAt(i - 1);
        EXPECT_EQ(std::max_element(row.begin(), row.end()) - row.begin(), prompt.token_ids[i]);
        EXPECT_GT(prompt.TopTwoGap(i - 1), 0);
        EXPECT_GT(prompt.RouterGap(i), 0);
      }
    }
  }
}

}  // namespace
}  // namespace moed::testing
