#include "runtime/model/expert_format_choice.h"

#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/model/recoded_experts.h"
#include "tests/golden/golden_case.h"
#include "tests/runtime/model/converted_checkpoint.h"

namespace moed::model {
namespace {

using ::testing::HasSubstr;
using enum ExpertFormatPreference;
constexpr auto kServedBf16 = backend::ExpertFormatKind::kBF16;
constexpr auto kServedBf12 = backend::ExpertFormatKind::kBF12;
constexpr int64_t kPaged = 0;
constexpr int64_t kAllInHostMemory = int64_t{1} << 30;

class ExpertFormatChoiceTest : public ::testing::Test {
 protected:
  ExpertFormatChoiceTest() : directory_(Golden("demo")), converted_(directory_) {}

  static std::string Golden(const std::string& name) {
    return moed::testing::LoadGoldenCase(name)->checkpoint_directory;
  }

  std::string directory_;
  ConvertedCheckpoint converted_;
};

TEST_F(ExpertFormatChoiceTest, FollowsWishFilesKernelsAndPlace) {
  const struct {
    bool converted;
    ExpertFormatRequest request;
    backend::ExpertFormatKind kind;
    bool encoded_on_reading;
    const char* note;
  } cases[] = {
      // From bf16 files.
      {false, {kAuto, true, kPaged}, kServedBf16, false, "moed convert"},
      {false, {kAuto, true, kAllInHostMemory}, kServedBf12, true, ""},
      {false, {kAuto, true, 1000}, kServedBf16, false, "moed convert"},
      {false, {kAuto, false, kAllInHostMemory}, kServedBf16, false, "no kernels"},
      {false, {kBF16, true, kAllInHostMemory}, kServedBf16, false, ""},
      {false, {kBF12, true, kPaged}, kServedBf12, true, ""},
      {false, {kBF12, true, kAllInHostMemory}, kServedBf12, true, ""},
      // From converted files.
      {true, {kAuto, true, kPaged}, kServedBf12, false, ""},
      {true, {kAuto, true, kAllInHostMemory}, kServedBf12, false, ""},
      {true, {kBF12, true, kAllInHostMemory}, kServedBf12, false, ""},
      {true, {kAuto, false, kAllInHostMemory}, kServedBf16, false, "decoded"},
      {true, {kBF16, true, kPaged}, kServedBf16, false, ""},
      {true, {kBF12, true, kPaged}, kServedBf12, false, ""},
  };
  for (size_t i = 0; i < std::size(cases); ++i) {
    const auto checkpoint = OpenGood(cases[i].converted ? converted_.directory() : directory_);
    const auto served = ChooseExperts(*checkpoint, cases[i].request);
    ASSERT_TRUE(served.ok()) << i << ": " << served.status();
    EXPECT_EQ(served->source->format().kind(), cases[i].kind) << i;
    EXPECT_EQ(served->encoding != nullptr, cases[i].encoded_on_reading) << i;
    EXPECT_THAT(served->note, HasSubstr(cases[i].note)) << i;
    EXPECT_EQ(served->note.empty(), std::string(cases[i].note).empty()) << i << served->note;
  }
}

TEST_F(ExpertFormatChoiceTest, Bf12WithoutKernelsIsAnErrorWithARemedy) {
  for (const std::string& directory : {directory_, converted_.directory()}) {
    const auto served = ChooseExperts(*OpenGood(directory), {.preference = kBF12});
    EXPECT_EQ(served.status().code(), absl::StatusCode::kUnimplemented);
    EXPECT_THAT(std::string(served.status().message()), HasSubstr("--expert-format"));
  }
}

TEST_F(ExpertFormatChoiceTest, WhatBf12DoesNotMakeSmallerStaysBf16) {
  const auto checkpoint = OpenGood(Golden("qwen3_moe"));  // rows of 64 values, filled up to 128
  const auto loaded = ChooseExperts(*checkpoint, {kAuto, true, kAllInHostMemory});
  ASSERT_TRUE(loaded.ok());
  EXPECT_EQ(loaded->source->format().kind(), kServedBf16);
  EXPECT_THAT(loaded->note, HasSubstr("% of their bytes"));
  const auto paged = ChooseExperts(*checkpoint, {kAuto, true, kPaged});
  ASSERT_TRUE(paged.ok());
  EXPECT_EQ(paged->note, "");
}

// Experts whose last one is wilder than any that was sampled.
class UnevenExperts : public ExpertSource {
 public:
  explicit UnevenExperts(const ExpertSource& source) : source_(source) {}
  const backend::ExpertFormat& format() const override { return source_.format(); }
  absl::Status Read(cache::ExpertKey key, ReadShare share,
                    std::span<std::byte> blob) const override {
    absl::Status status = source_.Read(key, share, blob);
    auto* values = reinterpret_cast<backend::BFloat16*>(blob.data());
    for (size_t i = 0; key.expert == 31 && i < blob.size() / 2; i += 5) values[i] = 0x0080;
    return status;
  }

 private:
  const ExpertSource& source_;
};

TEST_F(ExpertFormatChoiceTest, AnExpertUnlikeTheSampleIsNamedNotCut) {
  const auto checkpoint = OpenGood(directory_);
  const UnevenExperts uneven(checkpoint->experts());
  const auto format = SampleBf12Format(checkpoint->config(), uneven);
  ASSERT_TRUE(format.ok()) << format.status();
  const EncodedExperts encoded(uneven, *format);
  std::vector<std::byte> blob(format->blob_bytes());
  EXPECT_TRUE(encoded.Read({.layer = 0, .expert = 30}, {}, blob).ok());
  const absl::Status status = encoded.Read({.layer = 0, .expert = 31}, {}, blob);
  EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(status.message()), HasSubstr("expert 31 of layer 0"));
}

}  // namespace
}  // namespace moed::model
