#include "runtime/backend/cpu/rms_norm.h"

#include <cmath>
#include <cstdint>

#include "gtest/gtest.h"
#include "tests/runtime/backend/cpu/cpu_target_test.h"
#include "tests/runtime/backend/cpu/random_tensor.h"

namespace moed::backend {
namespace {

class RmsNormTest : public CpuTargetTest {};
MOED_INSTANTIATE_CPU_TARGETS(RmsNormTest);

TEST_P(RmsNormTest, MatchesDoublePrecision) {
  constexpr float kEpsilon = 1e-2f;
  for (const int64_t width : {1, 7, 32, 64, 100, 2048}) {
    ThreadPool pool(2);
    constexpr int64_t kTokens = 19;
    FloatMatrix x = FloatMatrix::Random(kTokens, width, 1);
    FloatMatrix weight = FloatMatrix::Random(1, width, 2);
    FloatMatrix out_f32(kTokens, width);
    BFloat16Matrix out(kTokens, width);
    RmsNormRows(pool, x.tensor(), weight.vector(), kEpsilon, out.tensor(), out_f32.tensor());
    for (int64_t t = 0; t < kTokens; ++t) {
      double squares = 0;
      for (int64_t i = 0; i < width; ++i) squares += double{x.at(t, i)} * x.at(t, i);
      const double scale = 1 / std::sqrt(squares / static_cast<double>(width) + kEpsilon);
      for (int64_t i = 0; i < width; ++i) {
        const double expected = x.at(t, i) * scale * weight.at(0, i);
        ASSERT_NEAR(out_f32.at(t, i), expected, 1e-6 + std::abs(expected) * 1e-5);
        ASSERT_EQ(out.at(t, i), ToFloat(ToBFloat16(out_f32.at(t, i))));
      }
    }
  }
}

TEST_P(RmsNormTest, GivesTheSameBf16WithAndWithoutFloats) {
  ThreadPool pool(1);
  FloatMatrix x = FloatMatrix::Random(3, 50, 1);
  FloatMatrix weight = FloatMatrix::Random(1, 50, 2);
  FloatMatrix floats(3, 50);
  BFloat16Matrix with_floats(3, 50);
  BFloat16Matrix without(3, 50);
  RmsNormRows(pool, x.tensor(), weight.vector(), 1e-6f, with_floats.tensor(), floats.tensor());
  RmsNormRows(pool, x.tensor(), weight.vector(), 1e-6f, without.tensor(), Tensor());
  EXPECT_EQ(with_floats.values(), without.values());
}

}  // namespace
}  // namespace moed::backend
