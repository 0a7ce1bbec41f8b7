#include "runtime/text/tokenizer.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/runtime/text/text_fixtures.h"

namespace moed::text {
namespace {

std::string Repeated(const std::string& unit, size_t size_bytes) {
  std::string text;
  while (text.size() < size_bytes) text += unit;
  return text;
}

TEST(TokenizerTest, AMebibyteOfAnyKindOfCharacterComesBackUnchangedOnASmallStack) {
  const std::vector<std::string> units = {
      "a",  "A", "7",  " ",    "\n", " \n",          "\t",       "!",
      "'s", "é", "语", "🙂", "<",  "<|im_start|>", "e\u0301x", "\u2581"};
  for (const std::string kind : {"demo", "prepend"}) {
    const std::unique_ptr<Tokenizer> tokenizer = LoadGolden(kind);
    for (const std::string& unit : units) {
      if (kind == "prepend" && unit == "\u2581") continue;  // stands for a space there
      const std::string text = Repeated(unit, 1 << 20);
      RunOnSmallStack([&] {
        const auto ids = tokenizer->Encode(text, false, false);
        ASSERT_TRUE(ids.ok()) << ids.status();
        EXPECT_TRUE(tokenizer->Decode(*ids, false).value() == text) << kind << ": " << unit;
      });
    }
  }
}

TEST(TokenizerTest, ControlTokensAreParsedOnlyWhenAsked) {
  const std::unique_ptr<Tokenizer> tokenizer = LoadGolden("qwen");
  const std::string text = "a<|im_end|>b<think>";
  const std::vector<int32_t> parsed = tokenizer->Encode(text, false, true).value();
  const std::vector<int32_t> plain = tokenizer->Encode(text, false, false).value();
  EXPECT_EQ(tokenizer->Decode(parsed, true).value(), "ab<think>");
  EXPECT_EQ(tokenizer->Decode(plain, true).value(), text);
  EXPECT_EQ(parsed.back(), plain.back()) << "<think> is a token, but not a control token";
}

TEST(TokenizerTest, RefusesTextThatIsNotUtf8AndSaysWhere) {
  const std::unique_ptr<Tokenizer> tokenizer = LoadGolden("demo");
  for (const std::string text : {"ab\xff", "ab\xc3", "ab\xed\xa0\x80", "ab\xc0\xaf"}) {
    const auto ids = tokenizer->Encode(text, true, true);
    EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(ids.status().message().find("byte 2"), std::string::npos) << ids.status();
  }
}

TEST(TokenizerTest, RefusesToDecodeIdsOutsideTheVocabulary) {
  const std::unique_ptr<Tokenizer> tokenizer = LoadGolden("demo");
  EXPECT_EQ(tokenizer->vocab_size(), 2048);
  for (const int32_t id : {-1, 2048, INT32_MIN, INT32_MAX}) {
    const std::vector<int32_t> ids = {5, id};
    const auto text = tokenizer->Decode(ids, true);
    EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(text.status().message().find(std::to_string(id)), std::string::npos);
  }
  EXPECT_EQ(tokenizer->Decode({}, true).value(), "");
}

TEST(TokenizerTest, AMissingFileIsNotFound) {
  const ScratchDirectory directory;
  EXPECT_EQ(LoadTokenizer(directory.path()).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace moed::text
