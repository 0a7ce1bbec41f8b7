#include "runtime/model/sampling.h"

#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moed::model {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int kVocab = 100;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kHuge = std::numeric_limits<float>::max();

struct FloatField {
  const char* name;
  float SamplingParams::*field;
  std::vector<float> legal;
  std::vector<float> illegal;
};

const FloatField kFloatFields[] = {
    {"temperature", &SamplingParams::temperature, {0, 1e-30f, 0.7f, 100}, {-0.1f, 100.5f}},
    {"top_p", &SamplingParams::top_p, {1e-30f, 0.5f, 1}, {0, -0.1f, 1.1f}},
    {"min_p", &SamplingParams::min_p, {0, 0.5f, 1}, {-0.1f, 1.1f}},
    {"repetition_penalty", &SamplingParams::repetition_penalty, {0.01f, 1, 100}, {0, -1, 101}},
    {"presence_penalty", &SamplingParams::presence_penalty, {-2, 0, 2}, {-2.1f, 2.1f}},
    {"frequency_penalty", &SamplingParams::frequency_penalty, {-2, 0, 2}, {-2.1f, 2.1f}},
};

TEST(ValidateSamplingParamsTest, AcceptsDefaults) {
  EXPECT_TRUE(ValidateSamplingParams({}, kVocab).ok());
}

TEST(ValidateSamplingParamsTest, ChecksEveryFloatAtItsLimitsNanAndHuge) {
  for (const FloatField& field : kFloatFields) {
    std::vector<float> illegal = field.illegal;
    illegal.insert(illegal.end(), {kNan, kInfinity, -kInfinity, kHuge, -kHuge});
    for (float value : field.legal) {
      SamplingParams params;
      params.*field.field = value;
      EXPECT_TRUE(ValidateSamplingParams(params, kVocab).ok()) << field.name << " " << value;
    }
    for (float value : illegal) {
      SamplingParams params;
      params.*field.field = value;
      const absl::Status status = ValidateSamplingParams(params, kVocab);
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field.name << " " << value;
      EXPECT_THAT(std::string(status.message()), HasSubstr(field.name));
    }
  }
}

TEST(ValidateSamplingParamsTest, ChecksCounts) {
  constexpr int kMost = std::numeric_limits<int>::max();
  constexpr int kLeast = std::numeric_limits<int>::min();
  for (int top_k : {-1, 0, 1, kMost}) {
    EXPECT_TRUE(ValidateSamplingParams({.top_k = top_k}, kVocab).ok()) << top_k;
  }
  for (int top_k : {-2, kLeast}) {
    EXPECT_FALSE(ValidateSamplingParams({.top_k = top_k}, kVocab).ok()) << top_k;
  }
  for (int logprobs : {-1, 0, 20}) {
    EXPECT_TRUE(ValidateSamplingParams({.logprobs = logprobs}, kVocab).ok()) << logprobs;
  }
  for (int logprobs : {-2, 21, kMost, kLeast}) {
    EXPECT_FALSE(ValidateSamplingParams({.logprobs = logprobs}, kVocab).ok()) << logprobs;
  }
}

TEST(ValidateSamplingParamsTest, ChecksLogitBias) {
  for (const auto& bias : std::vector<std::pair<int32_t, float>>{{0, -100}, {99, 100}, {5, 0}}) {
    EXPECT_TRUE(ValidateSamplingParams({.logit_bias = {bias}}, kVocab).ok()) << bias.first;
  }
  for (const auto& bias : std::vector<std::pair<int32_t, float>>{
           {-1, 0}, {100, 0}, {5, 100.5f}, {5, -101}, {5, kNan}, {5, kInfinity}}) {
    const absl::Status status = ValidateSamplingParams({.logit_bias = {{1, 1}, bias}}, kVocab);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bias.first;
    EXPECT_THAT(std::string(status.message()), HasSubstr("logit_bias"));
  }
}

TEST(SamplerStateTest, RemembersTokensOnlyIfAPenaltyNeedsThem) {
  const std::vector<int32_t> prompt = {3, 4};
  SamplerState plain({}, prompt);
  plain.Accept(5);
  EXPECT_THAT(plain.seen(), IsEmpty());
  EXPECT_EQ(plain.num_accepted(), 1);

  SamplerState output({.presence_penalty = 1}, prompt);
  output.Accept(5);
  output.Accept(5);
  ASSERT_EQ(output.seen().size(), 1u);
  EXPECT_EQ(output.seen().at(5).output_count, 2);

  SamplerState both({.repetition_penalty = 2}, prompt);
  both.Accept(4);
  ASSERT_EQ(both.seen().size(), 2u);
  EXPECT_TRUE(both.seen().at(4).in_prompt);
  EXPECT_EQ(both.seen().at(4).output_count, 1);
}

}  // namespace
}  // namespace moed::model
