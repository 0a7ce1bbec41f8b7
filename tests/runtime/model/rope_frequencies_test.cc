// Expected values: transformers 5.23, ROPE_INIT_FUNCTIONS in float32, head_dim 16.
#include "runtime/model/rope_frequencies.h"

#include <cmath>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moed::model {
namespace {

struct RopeCase {
  std::string name;
  RopeConfig rope;
  std::vector<float> expected;
};

std::vector<RopeCase> RopeCases() {
  return {
      {"Default",
       {.theta = 1e6, .rotary_dims = 16},
       {1, 0.177827939f, 0.0316227786f, 0.00562341325f, 0.00100000005f, 0.00017782794f,
        3.16227743e-05f, 5.62341347e-06f}},
      {"Linear",
       {.type = RopeType::kLinear, .theta = 1e4, .rotary_dims = 16, .factor = 4},
       {0.25f, 0.079056941f, 0.0250000004f, 0.00790569466f, 0.00249999994f, 0.000790569466f,
        0.000250000012f, 7.90569466e-05f}},
      {"Llama3",
       {.type = RopeType::kLlama3,
        .theta = 5e5,
        .rotary_dims = 16,
        .factor = 8,
        .original_max_positions = 512,
        .low_freq_factor = 1,
        .high_freq_factor = 4},
       {1, 0.193922758f, 0.0273441337f, 0.000911583134f, 0.000176776681f, 3.42810235e-05f,
        6.64786967e-06f, 1.28917316e-06f}},
      {"Yarn",
       {.type = RopeType::kYarn,
        .theta = 1e4,
        .rotary_dims = 16,
        .factor = 4,
        .original_max_positions = 1024},
       {1, 0.316227764f, 0.0812500045f, 0.0197642371f, 0.00437500002f, 0.000790569466f,
        0.000250000012f, 7.90569466e-05f}},
      {"YarnWithoutTruncation",
       {.type = RopeType::kYarn,
        .theta = 150000,
        .rotary_dims = 16,
        .factor = 32,
        .original_max_positions = 4096,
        .beta_fast = 16,
        .beta_slow = 2,
        .truncate = false},
       {1, 0.225418001f, 0.0508132726f, 0.00738754077f, 8.0687154e-05f, 1.8188337e-05f,
        4.09997847e-06f, 9.24208962e-07f}},
  };
}

class RopeFrequenciesTest : public ::testing::TestWithParam<RopeCase> {};

TEST_P(RopeFrequenciesTest, EqualTheReference) {
  const std::vector<float> actual = ComputeInverseFrequencies(GetParam().rope);
  ASSERT_EQ(actual.size(), GetParam().expected.size());
  for (size_t j = 0; j < actual.size(); ++j) {
    EXPECT_NEAR(actual[j] / GetParam().expected[j], 1, 2e-6) << "pair " << j;
  }
}

INSTANTIATE_TEST_SUITE_P(Types, RopeFrequenciesTest, ::testing::ValuesIn(RopeCases()),
                         [](const auto& test) { return test.param.name; });

TEST(RopeFrequenciesTest, Llama3WithoutMiddleBandHasNoNan) {
  const RopeConfig rope = {.type = RopeType::kLlama3,
                           .theta = 5e5,
                           .rotary_dims = 128,
                           .factor = 16,
                           .original_max_positions = 8192,
                           .low_freq_factor = 1,
                           .high_freq_factor = 1};
  for (float frequency : ComputeInverseFrequencies(rope)) EXPECT_TRUE(std::isfinite(frequency));
}

TEST(RopeFrequenciesTest, OnlyRotaryDimsAreTurned) {
  EXPECT_EQ(ComputeInverseFrequencies({.theta = 1e4, .rotary_dims = 64}).size(), 32u);
}

TEST(RopeFrequenciesTest, YarnAttentionFactorEqualsTheReference) {
  EXPECT_NEAR(YarnAttentionFactor(4, 1), 1.138629436111989, 1e-12);
  EXPECT_NEAR(YarnAttentionFactor(32, 1), 1.3465735902799727, 1e-12);
  EXPECT_EQ(YarnAttentionFactor(1, 1), 1);
}

}  // namespace
}  // namespace moed::model
