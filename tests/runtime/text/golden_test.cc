// Agreement with Hugging Face's Python packages, by the cases of golden/make_golden.py.

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/runtime/text/text_fixtures.h"

namespace moed::text {
namespace {

using Ids = std::vector<int32_t>;

const nlohmann::json& Cases() {
  static const auto* cases =
      new nlohmann::json(nlohmann::json::parse(Contents(std::string(DirectoryOf("cases.json")))));
  return *cases;
}

std::string Streamed(const Tokenizer& tokenizer, const Ids& ids, bool skip_special_tokens) {
  std::unique_ptr<TokenStream> stream = tokenizer.NewStream(skip_special_tokens);
  std::string text;
  for (const int32_t id : ids) text += stream->Push(id).value();
  return text + stream->Finish().value();
}

TEST(GoldenTest, TextIsEncodedAsInPython) {
  for (const auto& [kind, cases] : Cases()["text"].items()) {
    const std::unique_ptr<Tokenizer> tokenizer = LoadGolden(kind);
    for (const auto& one : cases) {
      const std::string text = one["text"];
      SCOPED_TRACE(kind + ": " + text);
      EXPECT_EQ(tokenizer->Encode(text, false, true).value(), one["ids"].get<Ids>());
      EXPECT_EQ(tokenizer->Encode(text, true, true).value(), one["with_special"].get<Ids>());
      EXPECT_EQ(tokenizer->Encode(text, false, false).value(), one["plain"].get<Ids>());
    }
  }
}

TEST(GoldenTest, IdsAreDecodedAsInPythonAtOnceAndInAStream) {
  for (const auto& [kind, cases] : Cases()["text"].items()) {
    const std::unique_ptr<Tokenizer> tokenizer = LoadGolden(kind);
    for (const auto& one : cases) {
      SCOPED_TRACE(kind + ": " + one["text"].get<std::string>());
      const Ids ids = one["with_special"];
      EXPECT_EQ(tokenizer->Decode(ids, false).value(), one["decoded"]);
      EXPECT_EQ(tokenizer->Decode(ids, true).value(), one["decoded_skipping"]);
      EXPECT_EQ(Streamed(*tokenizer, ids, false), one["decoded"]);
      EXPECT_EQ(Streamed(*tokenizer, ids, true), one["decoded_skipping"]);
    }
  }
}

TEST(GoldenTest, ConversationsAreRenderedAsInPython) {
  for (const auto& [kind, cases] : Cases()["chat"].items()) {
    const std::unique_ptr<Tokenizer> tokenizer = LoadGolden(kind);
    for (const auto& one : cases) {
      SCOPED_TRACE(kind + " " + one.dump());
      const std::string jinja = Cases()["templates"][one["template"].get<std::string>()];
      const auto chat_template = TemplateOf(jinja, kind);
      ASSERT_TRUE(chat_template.ok()) << chat_template.status();
      std::vector<ChatMessage> messages;
      for (const auto& message : one["messages"]) {
        messages.push_back({message["role"], message["content"]});
      }
      const auto ids = (*chat_template)->Render(messages, one["add_generation_prompt"], *tokenizer);
      ASSERT_TRUE(ids.ok()) << ids.status();
      EXPECT_EQ(*ids, one["ids"].get<Ids>()) << tokenizer->Decode(*ids, false).value();
    }
  }
}

}  // namespace
}  // namespace moed::text
