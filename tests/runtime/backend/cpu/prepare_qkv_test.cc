#include "runtime/backend/cpu/prepare_qkv.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/backend/cpu/kv_layout.h"
#include "tests/runtime/backend/cpu/random_tensor.h"

namespace moed::backend {
namespace {

constexpr int kBlockTokens = 4;

// Two sequences in one batch: three tokens from position 5 on, then one at position 2.
class PrepareQkvTest : public testing::Test {
 protected:
  PrepareQkvTest() {
    spec_ = {.query_heads = 4, .kv_heads = 2, .head_dim = 8};
    prepare_.rope.inverse_frequencies = frequencies_.vector();
    frequencies_.values() = {1.0f, 0.5f, 0.25f, 0.01f};
    segments_ = {
        {.first_row = 0, .num_tokens = 3, .context_start = 5, .kv_blocks = first_blocks_},
        {.first_row = 3, .num_tokens = 1, .context_start = 2, .kv_blocks = second_blocks_}};
  }

  void Run() {
    ThreadPool pool(2);
    q_ = q_before_;
    k_ = k_before_;
    v_ = v_before_;
    PrepareQkvRows(pool, rope_table_, prepare_, spec_, segments_, q_.tensor(), k_.tensor(),
                   v_.tensor(), Cache());
  }

  KvLayer Cache() { return {keys_.tensor(), values_.tensor(), kBlockTokens}; }

  // A row of one projection as the formulas give it, in double precision.
  std::vector<double> Expected(const FloatMatrix& before, int64_t row, int heads,
                               const Tensor& norm) const {
    const int d = spec_.head_dim;
    const int width = heads * d;
    std::vector<double> x(before.values().begin() + row * width,
                          before.values().begin() + (row + 1) * width);
    const int group = prepare_.norm_per_head ? d : width;
    for (int begin = 0; begin < width && !norm.empty(); begin += group) {
      double squares = 0;
      for (int i = begin; i < begin + group; ++i) squares += x[i] * x[i];
      const double scale = 1 / std::sqrt(squares / group + prepare_.norm_epsilon);
      for (int i = begin; i < begin + group; ++i) x[i] *= scale * norm.As<float>()[i - begin];
    }
    if (prepare_.clip_qkv > 0) {
      for (double& value : x)
        value = std::clamp<double>(value, -prepare_.clip_qkv, prepare_.clip_qkv);
    }
    const int pairs = prepare_.rope.rotary_dims / 2;
    for (int head = 0; head < heads; ++head) {
      for (int j = 0; j < pairs; ++j) {
        const int first = head * d + (prepare_.rope.interleaved ? 2 * j : j);
        const int second = prepare_.rope.interleaved ? first + 1 : first + pairs;
        const double angle = kPositions[row] * frequencies_.at(0, j);
        const double a = x[first];
        const double b = x[second];
        x[first] = (a * std::cos(angle) - b * std::sin(angle)) * prepare_.rope.attention_factor;
        x[second] = (b * std::cos(angle) + a * std::sin(angle)) * prepare_.rope.attention_factor;
      }
    }
    return x;
  }

  void ExpectMatchesFormulas() const {
    for (int64_t row = 0; row < 4; ++row) {
      const std::vector<double> q = Expected(q_before_, row, 4, prepare_.q_norm);
      const std::vector<double> k = Expected(k_before_, row, 2, prepare_.k_norm);
      for (int i = 0; i < 32; ++i) ASSERT_NEAR(q_.at(row, i), q[i], 1e-5) << row << ", " << i;
      for (int i = 0; i < 16; ++i) ASSERT_NEAR(k_.at(row, i), k[i], 1e-5) << row << ", " << i;
    }
  }

  static constexpr int kPositions[] = {5, 6, 7, 2};

  AttentionSpec spec_;
  QkPrepare prepare_;
  FloatMatrix frequencies_{1, 4};
  std::vector<int32_t> first_blocks_ = {3, 1};
  std::vector<int32_t> second_blocks_ = {2};
  std::vector<AttentionSegment> segments_;
  RopeTable rope_table_;
  const FloatMatrix q_before_ = FloatMatrix::Random(4, 32, 1);
  const FloatMatrix k_before_ = FloatMatrix::Random(4, 16, 2);
  const FloatMatrix v_before_ = FloatMatrix::Random(4, 16, 3);
  FloatMatrix q_{4, 32};
  FloatMatrix k_{4, 16};
  FloatMatrix v_{4, 16};
  BFloat16Matrix keys_{5 * kBlockTokens, 16};
  BFloat16Matrix values_{5 * kBlockTokens, 16};
};

TEST_F(PrepareQkvTest, RotatesHalvesOrNeighbours) {
  prepare_.rope.rotary_dims = 8;
  for (bool interleaved : {false, true}) {
    prepare_.rope.interleaved = interleaved;
    Run();
    ExpectMatchesFormulas();
  }
}

TEST_F(PrepareQkvTest, LeavesDimensionsBeyondTheRotaryOnesAlone) {
  prepare_.rope.rotary_dims = 4;
  prepare_.rope.attention_factor = 1.5f;
  Run();
  ExpectMatchesFormulas();
  EXPECT_EQ(q_.at(0, 4), q_before_.at(0, 4));
}

TEST_F(PrepareQkvTest, NormalizesByHead) {
  FloatMatrix q_norm = FloatMatrix::Random(1, 8, 4);
  FloatMatrix k_norm = FloatMatrix::Random(1, 8, 5);
  prepare_.q_norm = q_norm.vector();
  prepare_.k_norm = k_norm.vector();
  prepare_.rope.rotary_dims = 8;
  Run();
  ExpectMatchesFormulas();
}

TEST_F(PrepareQkvTest, NormalizesWholeProjectionsAndClipsAfterwards) {
  FloatMatrix q_norm = FloatMatrix::Random(1, 32, 4);
  FloatMatrix k_norm = FloatMatrix::Random(1, 16, 5);
  prepare_.q_norm = q_norm.vector();
  prepare_.k_norm = k_norm.vector();
  prepare_.norm_per_head = false;
  prepare_.clip_qkv = 0.5f;
  prepare_.rope.rotary_dims = 8;
  Run();
  ExpectMatchesFormulas();
  EXPECT_THAT(v_.values(), testing::Each(testing::AllOf(testing::Ge(-0.5f), testing::Le(0.5f))));
}

TEST_F(PrepareQkvTest, WritesKeysAndValuesToTheirPlaces) {
  prepare_.rope.rotary_dims = 8;
  Run();
  // Position, row and block of each token: 5, 6 and 7 lie in the second block of the first table.
  struct Place {
    int64_t row;
    int64_t block;
    int64_t slot;
  };
  for (const Place& place : {Place{0, 1, 1}, {1, 1, 2}, {2, 1, 3}, {3, 2, 2}}) {
    for (int head = 0; head < 2; ++head) {
      const int64_t at = KvOffset(spec_, Cache(), place.block, place.slot, head);
      for (int i = 0; i < 8; ++i) {
        EXPECT_EQ(keys_.values()[at + i], ToBFloat16(k_.at(place.row, head * 8 + i)));
        EXPECT_EQ(values_.values()[at + i], ToBFloat16(v_.at(place.row, head * 8 + i)));
      }
    }
  }
  const auto written = std::count_if(values_.values().begin(), values_.values().end(),
                                     [](BFloat16 value) { return value != 0; });
  EXPECT_EQ(written, 4 * 16);
}

TEST_F(PrepareQkvTest, FollowsPositionsFromStepToStep) {
  prepare_.rope.rotary_dims = 8;
  Run();
  const std::vector<float> first = q_.values();
  segments_[0].context_start = 4;
  Run();
  EXPECT_NE(q_.values(), first);
  segments_[0].context_start = 5;
  Run();
  EXPECT_EQ(q_.values(), first);
}

}  // namespace
}  // namespace moed::backend
