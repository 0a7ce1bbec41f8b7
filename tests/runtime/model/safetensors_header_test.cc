#include "runtime/model/safetensors_header.h"

#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/model/checkpoint_directory.h"
#include "runtime/model/tensor_files.h"
#include "tests/golden/golden_case.h"
#include "tests/runtime/model/checkpoint_files.h"

namespace moed::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct FileCase {
  std::string name;
  std::string bytes;
  bool accept = false;
};

// The corpus of make_safetensors_cases.py, whose verdicts are the reference parser's.
std::vector<FileCase> FileCases() {
  std::ifstream file(moed::testing::GoldenPath("safetensors_cases.json"));
  std::vector<FileCase> cases;
  for (const auto& entry : nlohmann::json::parse(file)) {
    cases.push_back({entry["name"],
                     absl::HexStringToBytes(entry["head_hex"].get<std::string>()) +
                         std::string(entry["data_bytes"].get<size_t>(), '\0'),
                     entry["accept"]});
  }
  return cases;
}

class SafetensorsCorpusTest : public ::testing::TestWithParam<FileCase> {};

TEST_P(SafetensorsCorpusTest, VerdictIsTheReferences) {
  const TemporaryDirectory directory;
  directory.Write("model.safetensors", GetParam().bytes);
  const auto opened = CheckpointDirectory::Open(directory.path());
  ASSERT_TRUE(opened.ok());
  const absl::Status status = TensorFiles::Open(*opened).status();
  EXPECT_EQ(status.ok(), GetParam().accept) << status;
  if (!status.ok()) {
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors"));
  }
}

INSTANTIATE_TEST_SUITE_P(Files, SafetensorsCorpusTest, ::testing::ValuesIn(FileCases()),
                         [](const auto& test) { return test.param.name; });

TEST(SafetensorsHeaderTest, GivesTensorsInOrderOfTheirPlace) {
  const std::string header = R"({"b":{"dtype":"BF16","shape":[3],"data_offsets":[4,10]},)"
                             R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})";
  const auto parsed = ParseSafetensorsHeader(header, 8 + header.size() + 10, "f");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const std::vector<TensorEntry>& tensors = parsed->tensors;
  ASSERT_EQ(tensors.size(), 2u);
  EXPECT_EQ(tensors[0].name, "a");
  EXPECT_EQ(tensors[0].dtype, backend::DType::kF32);
  EXPECT_EQ(tensors[0].offset, 8 + header.size());
  EXPECT_EQ(tensors[1].name, "b");
  EXPECT_THAT(tensors[1].shape, ElementsAre(3));
  EXPECT_EQ(tensors[1].bytes, 6u);
  EXPECT_EQ(tensors[1].offset, 8 + header.size() + 4);
}

TEST(SafetensorsHeaderTest, TypesThatWeCannotComputeWithAreKnownByName) {
  const std::string header = R"({"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}})";
  const auto parsed = ParseSafetensorsHeader(header, 8 + header.size() + 2, "f");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->tensors[0].dtype, std::nullopt);
  EXPECT_EQ(parsed->tensors[0].dtype_name, "F8_E4M3");
}

TEST(SafetensorsHeaderTest, WhatIsWrittenIsReadBack) {
  const SafetensorsMetadata metadata = {{"format", "pt"}, {"note \"x\"", "\n"}};
  const std::string head =
      WriteSafetensorsHeader({{"b", "BF16", {3}, 6}, {"a", "U8", {2, 2}, 4}}, metadata);
  EXPECT_EQ(head.size() % 4096, 0u);
  const auto bytes = ParseSafetensorsPrefix(head, head.size() + 10, "f");
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  const auto parsed = ParseSafetensorsHeader(head.substr(8), head.size() + 10, "f");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->metadata, metadata);
  ASSERT_EQ(parsed->tensors.size(), 2u);
  EXPECT_EQ(parsed->tensors[0].name, "b");
  EXPECT_EQ(parsed->tensors[0].offset, head.size());
  EXPECT_EQ(parsed->tensors[1].dtype, backend::DType::kU8);
  EXPECT_THAT(parsed->tensors[1].shape, ElementsAre(2, 2));
  EXPECT_EQ(parsed->tensors[1].offset, head.size() + 6);
}

TEST(SafetensorsHeaderTest, EveryTruncationIsAnErrorNotACrash) {
  const std::string file = SafetensorsFile(
      {{"a", "F32", {2, 2}, std::string(16, 'x')}, {"b", "BF16", {3}, std::string(6, 'y')}});
  const TemporaryDirectory directory;
  const auto opened = CheckpointDirectory::Open(directory.path());
  for (size_t bytes = 0; bytes < file.size(); ++bytes) {
    directory.Write("model.safetensors", file.substr(0, bytes));
    EXPECT_EQ(TensorFiles::Open(*opened).status().code(), absl::StatusCode::kDataLoss) << bytes;
  }
}

TEST(SafetensorsHeaderTest, AHeaderAboveTheLimitIsNotRead) {
  const TemporaryDirectory directory;
  const uint64_t length = kMaxSafetensorsHeaderBytes + 1;
  directory.Write("model.safetensors", std::string(reinterpret_cast<const char*>(&length), 8));
  std::filesystem::resize_file(directory.path() / "model.safetensors", length + 8);
  const auto opened = CheckpointDirectory::Open(directory.path());
  EXPECT_THAT(TensorFiles::Open(*opened).status().ToString(), HasSubstr("100000001"));
}

}  // namespace
}  // namespace moed::model
