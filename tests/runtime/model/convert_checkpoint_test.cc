#include "runtime/model/convert_checkpoint.h"

#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/model/for_each_expert.h"
#include "runtime/model/recoded_experts.h"
#include "tests/golden/golden_case.h"
#include "tests/runtime/model/checkpoint_files.h"
#include "tests/runtime/model/converted_checkpoint.h"

namespace moed::model {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string GoldenDirectory(const std::string& name) {
  return moed::testing::LoadGoldenCase(name)->checkpoint_directory;
}

std::vector<std::byte> Blob(const ExpertSource& source, cache::ExpertKey key) {
  std::vector<std::byte> blob(source.format().blob_bytes(), std::byte{0xee});
  EXPECT_TRUE(source.Read(key, {}, blob).ok());
  return blob;
}

std::set<std::string> Names(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename());
  return names;
}

class ConvertGoldenTest : public ::testing::TestWithParam<std::string> {};

TEST_P(ConvertGoldenTest, WeightsAreTheSameBitForBit) {
  const std::unique_ptr<Checkpoint> source = OpenGood(GoldenDirectory(GetParam()));
  const ConvertedCheckpoint converted(source->directory());
  const std::unique_ptr<Checkpoint> opened = OpenGood(converted.directory());
  EXPECT_EQ(opened->experts().format().kind(), backend::ExpertFormatKind::kBF12);
  const DecodedExperts decoded(opened->experts());
  for (cache::ExpertKey key : AllExperts(source->config())) {
    EXPECT_EQ(Blob(decoded, key), Blob(source->experts(), key)) << key.layer << " " << key.expert;
  }
  for (int layer = 0; layer < source->config().num_layers(); ++layer) {
    for (int i = 0; i < kNumDenseRoles; ++i) {
      const auto role = static_cast<DenseRole>(i);
      ASSERT_EQ(opened->Has(role, layer), source->Has(role, layer));
      if (!source->Has(role, layer)) continue;
      const auto expected = source->ReadDense(role, layer);
      const auto read = opened->ReadDense(role, layer);
      ASSERT_TRUE(read.ok()) << read.status();
      EXPECT_EQ(read->view.dtype(), expected->view.dtype());
      ASSERT_EQ(read->view.num_bytes(), expected->view.num_bytes());
      EXPECT_EQ(std::memcmp(read->buffer.data(), expected->buffer.data(),
                            static_cast<size_t>(read->view.num_bytes())),
                0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, ConvertGoldenTest,
                         ::testing::ValuesIn(moed::testing::GoldenCaseNames()),
                         [](const auto& test) { return test.param; });

class ConvertCheckpointTest : public ::testing::Test {
 protected:
  absl::StatusOr<ConvertResult> Convert(ConvertOptions options = {}) {
    if (options.destination.empty()) options.destination = folder_.path() / "bf12";
    options.threads = 2;
    return ConvertCheckpoint(*source_, options);
  }
  // Nothing but what the test put there.
  void ExpectNothingLeft() { EXPECT_EQ(Names(folder_.path()), expected_names_); }

  TemporaryDirectory folder_;
  std::set<std::string> expected_names_;
  std::unique_ptr<Checkpoint> source_ = OpenGood(GoldenDirectory("demo"));
};

TEST_F(ConvertCheckpointTest, WhatIsBesideTheWeightsIsCopiedAndSizesAreTold) {
  int64_t told = 0;
  const auto result = Convert({.progress = [&](const char*, int64_t done, int64_t total) {
    told = done;
    EXPECT_LE(done, total);
  }});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->num_experts, 6 * 32);
  EXPECT_EQ(told, result->bf16_bytes);
  EXPECT_EQ(result->stored_bytes, 6 * 32 * static_cast<int64_t>(result->format.blob_bytes()));
  EXPECT_LT(result->stored_bytes, 0.8 * static_cast<double>(result->bf16_bytes));
  const fs::path written = folder_.path() / "bf12";
  for (const char* name : {"config.json", "tokenizer.json", "chat_template.jinja"}) {
    EXPECT_EQ(ReadText(written / name), ReadText(fs::path(source_->directory()) / name)) << name;
  }
  EXPECT_FALSE(Names(written).contains("model.safetensors"));
  EXPECT_THAT(Names(folder_.path()), ElementsAre("bf12"));
}

TEST_F(ConvertCheckpointTest, WhatIsAtTheDestinationStaysAsItIs) {
  folder_.Write("bf12/precious", "data");
  fs::create_symlink("nowhere", folder_.path() / "dangling");
  fs::create_directory(folder_.path() / "empty");
  expected_names_ = Names(folder_.path());
  for (const char* name : {"bf12", "bf12/", "dangling", "empty", "bf12/precious"}) {
    const absl::Status status = Convert({.destination = folder_.path() / name}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists) << status;
    ExpectNothingLeft();
  }
  EXPECT_EQ(ReadText(folder_.path() / "bf12/precious"), "data");
}

TEST_F(ConvertCheckpointTest, ADestinationInNoFolderIsNamed) {
  const absl::Status status = Convert({.destination = folder_.path() / "no/bf12"}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr((folder_.path() / "no").string()));
}

TEST_F(ConvertCheckpointTest, AConvertedSourceIsRefused) {
  ASSERT_TRUE(Convert().ok());
  source_ = OpenGood(folder_.path() / "bf12");
  const absl::Status status = Convert({.destination = folder_.path() / "twice"}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("converted already"));
}

TEST_F(ConvertCheckpointTest, AModelThatBf12MakesNoSmallerStaysAsItIs) {
  source_ = OpenGood(GoldenDirectory("qwen3_moe"));
  const absl::Status status = Convert().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("stay bf16"));
  ExpectNothingLeft();
}

TEST_F(ConvertCheckpointTest, ExpertsWithoutAWindowKeepTheModelBf16) {
  // Magnitudes spread evenly over 64 exponents.
  fs::copy(source_->directory(), folder_.path() / "wild");
  fs::path file = folder_.path() / "wild/model.safetensors";
  std::string bytes = ReadText(file);
  std::mt19937 random(1);
  for (size_t i = bytes.size() / 2; i + 2 <= bytes.size(); i += 2) {
    const uint32_t bits = (96 + random() % 64) << 7;
    bytes[i] = static_cast<char>(bits & 0xff);
    bytes[i + 1] = static_cast<char>(bits >> 8);
  }
  std::ofstream(file, std::ios::binary) << bytes;
  source_ = OpenGood(folder_.path() / "wild");
  expected_names_ = {"wild"};
  const absl::Status status = Convert().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("experts stay bf16"));
  ExpectNothingLeft();
}

TEST_F(ConvertCheckpointTest, ASourceCutShortMeanwhileLeavesNothing) {
  fs::copy(source_->directory(), folder_.path() / "cut");
  source_ = OpenGood(folder_.path() / "cut");
  const fs::path weights = folder_.path() / "cut/model.safetensors";
  fs::resize_file(weights, fs::file_size(weights) / 2);
  expected_names_ = {"cut"};
  const absl::Status status = Convert().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors"));
  ExpectNothingLeft();
}

TEST_F(ConvertCheckpointTest, AnInterruptionAtAnyPointLeavesNothing) {
  for (int limit : {1, 100, 193, 383}) {
    int calls = 0;
    const absl::Status status = Convert({.cancelled = [&] { return ++calls >= limit; }}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
    ExpectNothingLeft();
  }
}

// A limit of file sizes fails writes as a full disk does.
TEST_F(ConvertCheckpointTest, AFullDiskLeavesNothing) {
  rlimit before = {};
  getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  for (const rlim_t bytes : {1000, 300'000, 1'200'000}) {
    const rlimit limit = {bytes, before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
    const absl::Status status = Convert().status();
    setrlimit(RLIMIT_FSIZE, &before);
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("cannot write"), HasSubstr("bf12")));
    ExpectNothingLeft();
  }
  std::signal(SIGXFSZ, handler);
}

}  // namespace
}  // namespace moed::model
