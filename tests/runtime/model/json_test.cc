#include "runtime/model/json.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moed::model {
namespace {

using ::testing::HasSubstr;

std::string Message(std::string_view text) {
  return std::string(ParseJson(text, "a.json").status().message());
}

TEST(JsonTest, ReadsWhatIsJson) {
  const auto value = ParseJson(R"({"a": [1, 2.5, "x", null, true]})", "a.json");
  ASSERT_TRUE(value.ok()) << value.status();
  EXPECT_EQ((*value)["a"].size(), 5u);
}

TEST(JsonTest, NamesTheFileOfAMistake) {
  EXPECT_THAT(Message("{\"a\": }"), HasSubstr("a.json"));
  EXPECT_THAT(Message(""), HasSubstr("a.json"));
  EXPECT_THAT(Message("{} {}"), HasSubstr("a.json"));
}

TEST(JsonTest, ARepeatedKeyIsAnErrorInOneObjectOnly) {
  EXPECT_THAT(Message(R"({"a": 1, "b": {"a": 1, "a": 2}})"), HasSubstr("\"a\" appears twice"));
  EXPECT_TRUE(ParseJson(R"({"a": 1, "b": {"a": 1}, "c": [{"a": 1}, {"a": 2}]})", "a.json").ok());
}

TEST(JsonTest, NestingIsBounded) {
  const auto nested = [](int levels) {
    return std::string(levels, '[') + "1" + std::string(levels, ']');
  };
  EXPECT_TRUE(ParseJson(nested(kMaxJsonDepth), "a.json").ok());
  EXPECT_THAT(Message(nested(kMaxJsonDepth + 1)), HasSubstr("nested deeper"));
  EXPECT_THAT(Message(std::string(10'000'000, '[')), HasSubstr("nested deeper"));
}

TEST(JsonTest, RejectsWhatPythonWritesButJsonLacks) {
  EXPECT_FALSE(ParseJson("{\"a\": NaN}", "a.json").ok());
  EXPECT_FALSE(ParseJson("{\"a\": Infinity}", "a.json").ok());
  EXPECT_FALSE(ParseJson("{\"a\": 1e999}", "a.json").ok());
  EXPECT_FALSE(ParseJson("{\"a\xff\": 1}", "a.json").ok());
}

TEST(JsonTest, AZeroByteIsNoEnd) {
  EXPECT_THAT(Message(std::string_view("{}\0", 3)), HasSubstr("zero byte"));
  EXPECT_THAT(Message(std::string_view("{\"a\0\": 1}", 9)), HasSubstr("zero byte"));
}

TEST(JsonTest, AnObjectIsNoArray) {
  EXPECT_TRUE(ParseJsonObject("{}", "a.json").ok());
  EXPECT_EQ(ParseJsonObject("[]", "a.json").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace moed::model
