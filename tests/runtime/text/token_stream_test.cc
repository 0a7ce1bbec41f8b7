#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "tests/runtime/text/text_fixtures.h"

namespace moed::text {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";

bool IsCharacterBoundary(std::string_view text) {
  return text.empty() || (static_cast<unsigned char>(text.front()) & 0xc0) != 0x80;
}

// The id of one byte: <0x00> is the first of 256 in the byte-fallback tokenizers here.
int32_t ByteToken(const Tokenizer& tokenizer, int byte) {
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const int32_t previous[] = {id};
    if (tokenizer.Decode(previous, false).value() == "A" && id < 300) return id - 'A' + byte;
  }
  return -1;
}

TEST(TokenStreamTest, AnySequenceOfTokensGivesTheSameTextAsDecodingAtOnce) {
  std::mt19937 random(7);
  for (const std::string kind : {"demo", "llama3", "qwen"}) {
    const std::unique_ptr<Tokenizer> tokenizer = LoadGolden(kind);
    for (int round = 0; round < 300; ++round) {
      const bool skip_special = round % 2 == 0;
      std::unique_ptr<TokenStream> stream = tokenizer->NewStream(skip_special);
      std::vector<int32_t> ids(random() % 40);
      std::string streamed;
      for (int32_t& id : ids) {
        id = static_cast<int32_t>(random() % tokenizer->vocab_size());
        const std::string text = stream->Push(id).value();
        EXPECT_TRUE(IsCharacterBoundary(text));
        streamed += text;
      }
      streamed += stream->Finish().value();
      EXPECT_EQ(streamed, tokenizer->Decode(ids, skip_special).value()) << kind;
    }
  }
}

TEST(TokenStreamTest, TokensOfValidTextGiveItBackInEveryKindOfTokenizer) {
  std::mt19937 random(8);
  const std::vector<std::string> words = {"Hello", " ", "  ",  "Größe",  "路由器", "🙂",
                                          "\n",    "é", "the", "expert", "x",      " a"};
  for (const std::string kind : {"prepend", "first", "metaspace", "wordpiece"}) {
    const std::unique_ptr<Tokenizer> tokenizer = LoadGolden(kind);
    for (int round = 0; round < 300; ++round) {
      std::string text;
      for (int i = 0; i < 8; ++i) text += words[random() % words.size()];
      const std::vector<int32_t> ids = tokenizer->Encode(text, true, false).value();
      std::unique_ptr<TokenStream> stream = tokenizer->NewStream(true);
      std::string streamed;
      for (const int32_t id : ids) streamed += stream->Push(id).value();
      streamed += stream->Finish().value();
      EXPECT_EQ(streamed, tokenizer->Decode(ids, true).value()) << kind << ": " << text;
    }
  }
}

TEST(TokenStreamTest, HoldsACharacterBackUntilItsLastByteAndStripsTheFirstSpaceOnly) {
  const std::unique_ptr<Tokenizer> tokenizer = LoadGolden("prepend");
  const int32_t space = tokenizer->Encode("", false, true)->empty()
                            ? tokenizer->Encode(" ", false, true)->front()
                            : -1;
  std::unique_ptr<TokenStream> stream = tokenizer->NewStream(true);
  EXPECT_EQ(stream->Push(ByteToken(*tokenizer, 0xf0)).value(), "");
  EXPECT_EQ(stream->Push(ByteToken(*tokenizer, 0x9f)).value(), "");
  EXPECT_EQ(stream->Push(ByteToken(*tokenizer, 0x99)).value(), "");
  EXPECT_EQ(stream->Push(ByteToken(*tokenizer, 0x82)).value(), "🙂");
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{space, space}, true)->size() + 1,
            stream->Push(space)->size() + stream->Push(space)->size());
}

TEST(TokenStreamTest, BytesThatNeverBecomeACharacterAreReplacedOneByOne) {
  const std::unique_ptr<Tokenizer> tokenizer = LoadGolden("prepend");
  std::unique_ptr<TokenStream> stream = tokenizer->NewStream(true);
  const std::vector<int32_t> ids = {ByteToken(*tokenizer, 0xe2), ByteToken(*tokenizer, 0x82),
                                    ByteToken(*tokenizer, 'A'), ByteToken(*tokenizer, 0xff)};
  std::string streamed;
  for (const int32_t id : ids) streamed += stream->Push(id).value();
  EXPECT_EQ(streamed + stream->Finish().value(), tokenizer->Decode(ids, true).value());
}

TEST(TokenStreamTest, AnIncompleteCharacterAtTheEndIsReplaced) {
  const std::unique_ptr<Tokenizer> tokenizer = LoadGolden("prepend");
  std::unique_ptr<TokenStream> stream = tokenizer->NewStream(true);
  EXPECT_EQ(stream->Push(ByteToken(*tokenizer, 0xe2)).value(), "");
  EXPECT_EQ(stream->Finish().value(), kReplacement);
  EXPECT_EQ(stream->Finish().value(), "");
}

TEST(TokenStreamTest, IdsWithoutATokenHaveNoTextAndNegativeOnesAreRefused) {
  for (const std::string kind : {"demo", "prepend", "wordpiece"}) {
    const std::unique_ptr<Tokenizer> tokenizer = LoadGolden(kind);
    std::unique_ptr<TokenStream> stream = tokenizer->NewStream(true);
    EXPECT_EQ(stream->Push(tokenizer->vocab_size()).value(), "");
    EXPECT_EQ(stream->Push(INT32_MAX).value(), "");
    EXPECT_EQ(stream->Push(-1).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(TokenStreamTest, OutlivesItsTokenizer) {
  std::unique_ptr<Tokenizer> tokenizer = LoadGolden("demo");
  const std::vector<int32_t> ids = tokenizer->Encode("still here", false, true).value();
  std::unique_ptr<TokenStream> stream = tokenizer->NewStream(true);
  tokenizer.reset();
  std::string streamed;
  for (const int32_t id : ids) streamed += stream->Push(id).value();
  EXPECT_EQ(streamed, "still here");
}

TEST(TokenStreamTest, AMillionTokensThatGiveNothingOrNeverACharacterStayCheap) {
  // Decoding anew what is held back would be quadratic here and take hours.
  for (const std::string kind : {"demo", "prepend", "wordpiece"}) {
    const std::unique_ptr<Tokenizer> tokenizer = LoadGolden(kind);
    const int32_t continuation = kind == "prepend" ? ByteToken(*tokenizer, 0x80) : 1;
    std::unique_ptr<TokenStream> skipping = tokenizer->NewStream(true);
    std::unique_ptr<TokenStream> whole = tokenizer->NewStream(false);
    for (int i = 0; i < 1000000; ++i) {
      ASSERT_TRUE(skipping->Push(0).ok());
      ASSERT_TRUE(whole->Push(continuation).ok());
    }
  }
}

}  // namespace
}  // namespace moed::text
