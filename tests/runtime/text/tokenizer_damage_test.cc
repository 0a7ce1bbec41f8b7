// Damaged tokenizer.json files: an error or a working tokenizer, never a crash.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "tests/runtime/text/text_fixtures.h"

namespace moed::text {
namespace {

absl::Status LoadedFrom(const std::string& json) {
  const ScratchDirectory directory;
  directory.Write("tokenizer.json", json);
  const auto tokenizer = LoadTokenizer(directory.path());
  if (!tokenizer.ok()) return tokenizer.status();
  const auto ids = (*tokenizer)->Encode("Hello <|im_end|> 路由器", true, true);
  return ids.ok() ? (*tokenizer)->Decode(*ids, false).status() : ids.status();
}

TEST(TokenizerDamageTest, TruncatedFilesAreRefused) {
  const std::string json = Contents(DirectoryOf("qwen") + "/tokenizer.json");
  for (size_t size = 0; size < json.size() - 1; size += 97) {
    EXPECT_EQ(LoadedFrom(json.substr(0, size)).code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(TokenizerDamageTest, RandomlyChangedFilesNeverCrash) {
  std::mt19937 random(3);
  for (const std::string kind : {"llama3", "qwen", "prepend", "first", "wordpiece", "metaspace"}) {
    const std::string json = Contents(DirectoryOf(kind) + "/tokenizer.json");
    for (int round = 0; round < 300; ++round) {
      std::string damaged = json;
      // Most damage near the start, where the structure is.
      const size_t reach = round % 2 == 0 ? damaged.size() : std::min<size_t>(3000, json.size());
      for (int i = 0; i < 3; ++i) damaged[random() % reach] = "\"{}[]:,0a\\ -"[random() % 12];
      LoadedFrom(damaged).IgnoreError();
    }
  }
}

TEST(TokenizerDamageTest, MissingAndForeignPartsAreRefused) {
  for (const std::string json : {"null", "[]", "{}", "{\"model\":null}", "\"x\"",
                                 "{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}}"}) {
    EXPECT_EQ(LoadedFrom(json).code(), absl::StatusCode::kInvalidArgument) << json;
  }
}

TEST(TokenizerDamageTest, AnAbsurdTokenIdIsRefusedRatherThanAllocatedFor) {
  auto json = nlohmann::json::parse(Contents(DirectoryOf("qwen") + "/tokenizer.json"));
  json["model"]["vocab"]["surplus"] = 4294967295u;
  EXPECT_EQ(LoadedFrom(json.dump()).code(), absl::StatusCode::kInvalidArgument);
}

TEST(TokenizerDamageTest, DeeplyNestedFilesAreRefused) {
  const std::string open(100000, '[');
  EXPECT_EQ(LoadedFrom(open).code(), absl::StatusCode::kInvalidArgument);
  std::string nested = "{\"normalizer\":";
  for (int i = 0; i < 20000; ++i) nested += "{\"type\":\"Sequence\",\"normalizers\":[";
  EXPECT_EQ(LoadedFrom(nested).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace moed::text
