#include "runtime/model/generation_config.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moed::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(GenerationConfigTest, ReadsWhatIsSetAndAssumesNothing) {
  const auto all = ParseGenerationConfig(
      R"({"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.05,
          "max_new_tokens": 2048, "eos_token_id": [151645, 151643], "do_sample": false})",
      "g");
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(all->temperature, 0.7f);
  EXPECT_EQ(all->top_k, 20);
  EXPECT_EQ(all->top_p, 0.8f);
  EXPECT_EQ(all->min_p, 0.1f);
  EXPECT_EQ(all->repetition_penalty, 1.05f);
  EXPECT_EQ(all->max_new_tokens, 2048);
  EXPECT_THAT(all->eos_token_ids, ElementsAre(151645, 151643));

  const auto none = ParseGenerationConfig("{}", "g");
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_EQ(none->temperature, std::nullopt);
  EXPECT_EQ(none->top_k, std::nullopt);
  EXPECT_EQ(none->max_new_tokens, std::nullopt);
  EXPECT_THAT(none->eos_token_ids, IsEmpty());
}

TEST(GenerationConfigTest, NullIsAbsentAndOneEndTokenIsAList) {
  const auto defaults = ParseGenerationConfig(R"({"top_p": null, "eos_token_id": 2})", "g");
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_EQ(defaults->top_p, std::nullopt);
  EXPECT_THAT(defaults->eos_token_ids, ElementsAre(2));
}

TEST(GenerationConfigTest, EveryValueOutOfRangeNamesFileAndKey) {
  for (const char* key : {"temperature", "top_k", "top_p", "min_p", "repetition_penalty",
                          "max_new_tokens", "eos_token_id"}) {
    for (const char* value : {"-1", "1e300", "\"1\"", "{}", "9223372036854775808"}) {
      const absl::Status status =
          ParseGenerationConfig(std::string("{\"") + key + "\": " + value + "}", "dir/g.json")
              .status();
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << key << " " << value;
      EXPECT_THAT(std::string(status.message()), HasSubstr(key));
      EXPECT_THAT(std::string(status.message()), HasSubstr("dir/g.json"));
    }
  }
}

TEST(GenerationConfigTest, EndTokensOfAConfigMayBeNested) {
  EXPECT_THAT(*ParseEosTokens(R"({"eos_token_id": 7})", "c"), ElementsAre(7));
  EXPECT_THAT(*ParseEosTokens(R"({"text_config": {"eos_token_id": [8, 9]}})", "c"),
              ElementsAre(8, 9));
  EXPECT_THAT(*ParseEosTokens(R"({"eos_token_id": null})", "c"), IsEmpty());
}

}  // namespace
}  // namespace moed::model
