#include "runtime/backend/cpu/elementwise.h"

#include <cmath>
#include <cstdint>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/backend/cpu/swiglu.h"
#include "tests/runtime/backend/cpu/cpu_target_test.h"
#include "tests/runtime/backend/cpu/random_tensor.h"

namespace moed::backend {
namespace {

TEST(ElementwiseTest, EmbedsTokens) {
  ThreadPool pool(2);
  BFloat16Matrix table = BFloat16Matrix::Random(11, 6, 1);
  FloatMatrix out(4, 6);
  EmbedRows(pool, table.tensor(), std::vector<int32_t>{10, 0, 3, 3}, out.tensor());
  for (int64_t i = 0; i < 6; ++i) {
    EXPECT_EQ(out.at(0, i), table.at(10, i));
    EXPECT_EQ(out.at(1, i), table.at(0, i));
    EXPECT_EQ(out.at(2, i), table.at(3, i));
    EXPECT_EQ(out.at(3, i), table.at(3, i));
  }
}

TEST(ElementwiseTest, CombinesExpertsInOrderOfRank) {
  // 1e8 + 1 - 1e8 is 0 in this order of float32 additions, and 1 in others.
  ThreadPool pool(2);
  FloatMatrix residual(1, 1);
  FloatMatrix expert_out(3, 1);
  expert_out.values() = {1e8f, 1.0f, -1e8f};
  FloatMatrix weights(1, 3);
  weights.values() = {1, 1, 1};
  CombineExpertRows(pool, expert_out.tensor(), weights.tensor(), residual.tensor());
  EXPECT_EQ(residual.at(0, 0), 0.0f);
}

TEST(ElementwiseTest, CombinesEachTokensOwnExperts) {
  ThreadPool pool(3);
  constexpr int64_t kTokens = 37;
  constexpr int64_t kHidden = 21;
  constexpr int64_t kTopK = 4;
  const FloatMatrix before = FloatMatrix::Random(kTokens, kHidden, 1);
  FloatMatrix residual = before;
  FloatMatrix expert_out = FloatMatrix::Random(kTokens * kTopK, kHidden, 2);
  FloatMatrix weights = FloatMatrix::Random(kTokens, kTopK, 3);
  CombineExpertRows(pool, expert_out.tensor(), weights.tensor(), residual.tensor());
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t i = 0; i < kHidden; ++i) {
      double expected = before.at(t, i);
      for (int64_t r = 0; r < kTopK; ++r) {
        expected += double{weights.at(t, r)} * expert_out.at(t * kTopK + r, i);
      }
      ASSERT_NEAR(residual.at(t, i), expected, 1e-5);
    }
  }
}

TEST(ElementwiseTest, AddsSharedExpertThroughItsGate) {
  ThreadPool pool(2);
  FloatMatrix shared(2, 1);
  shared.values() = {8.0f, 8.0f};
  FloatMatrix gate(2, 1);
  gate.values() = {0.0f, std::log(3.0f)};
  FloatMatrix residual(2, 1);
  AddSharedRows(pool, shared.tensor(), gate.tensor(), residual.tensor());
  EXPECT_FLOAT_EQ(residual.at(0, 0), 4.0f);
  EXPECT_FLOAT_EQ(residual.at(1, 0), 6.0f);
  AddSharedRows(pool, shared.tensor(), Tensor(), residual.tensor());
  EXPECT_FLOAT_EQ(residual.at(0, 0), 12.0f);
}

TEST(ElementwiseTest, GathersRows) {
  ThreadPool pool(2);
  FloatMatrix x = FloatMatrix::Random(5, 3, 1);
  FloatMatrix out(2, 3);
  GatherTensorRows(pool, x.tensor(), std::vector<int32_t>{4, 1}, out.tensor());
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_EQ(out.at(0, i), x.at(4, i));
    EXPECT_EQ(out.at(1, i), x.at(1, i));
  }
}

class SwiGluTest : public CpuTargetTest {};
MOED_INSTANTIATE_CPU_TARGETS(SwiGluTest);

TEST_P(SwiGluTest, TakesGateFromTheFirstHalfAndUpFromTheSecond) {
  for (const int64_t width : {1, 33, 5000}) {
    ThreadPool pool(2);
    FloatMatrix gate_up = FloatMatrix::Random(3, 2 * width, 1);
    BFloat16Matrix out(3, width);
    SwiGluRows(pool, gate_up.tensor(), out.tensor());
    for (int64_t t = 0; t < 3; ++t) {
      for (int64_t i = 0; i < width; ++i) {
        const double gate = gate_up.at(t, i);
        const double expected = gate / (1 + std::exp(-gate)) * gate_up.at(t, width + i);
        // Rounding to bf16 moves a value by 2^-8 of itself at most.
        ASSERT_NEAR(out.at(t, i), expected, 1e-6 + std::abs(expected) / 256);
      }
    }
  }
}

}  // namespace
}  // namespace moed::backend
