#include "runtime/backend/cpu/linear.h"

#include <cmath>
#include <memory>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/backend/cpu/cpu_features.h"
#include "runtime/backend/cpu/experts_amx.h"
#include "runtime/backend/cpu/experts_avx512.h"
#include "runtime/backend/cpu/linear_f32.h"
#include "tests/runtime/backend/cpu/cpu_target_test.h"
#include "tests/runtime/backend/cpu/random_tensor.h"

namespace moed::backend {
namespace {

struct Shape {
  int64_t tokens;
  int64_t in;
  int64_t out;
};

std::unique_ptr<PackedWeight> Pack(ThreadPool& pool, BFloat16Matrix& weight,
                                   const Tensor& bias = Tensor()) {
  return PackedWeight::Pack(pool, weight.tensor(), bias).value();
}

FloatMatrix Multiply(int threads, BFloat16Matrix& weight, BFloat16Matrix& x, Shape shape,
                     Bf16Multiply bf16_multiply = nullptr) {
  ThreadPool pool(threads);
  FloatMatrix y(shape.tokens, shape.out);
  DenseProduct(pool, bf16_multiply).Run(*Pack(pool, weight), x.tensor(), y.tensor(), false);
  return y;
}

// The bound on a sum of n products of about unit size, rounded n times.
float SumTolerance(int64_t n) { return 1e-6f * static_cast<float>(n); }

class LinearTest : public CpuTargetTest {};
MOED_INSTANTIATE_CPU_TARGETS(LinearTest);

void ExpectMatchesDoublePrecision(Shape shape, Bf16Multiply bf16_multiply) {
  BFloat16Matrix weight = BFloat16Matrix::Random(shape.out, shape.in, 1);
  BFloat16Matrix x = BFloat16Matrix::Random(shape.tokens, shape.in, 2);
  const FloatMatrix y = Multiply(2, weight, x, shape, bf16_multiply);
  for (int64_t t = 0; t < shape.tokens; ++t) {
    for (int64_t n = 0; n < shape.out; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < shape.in; ++k) sum += double{x.at(t, k)} * weight.at(n, k);
      ASSERT_NEAR(y.at(t, n), sum, SumTolerance(shape.in))
          << shape.tokens << "x" << shape.in << "x" << shape.out << " at " << t << ", " << n;
    }
  }
}

TEST_P(LinearTest, MatchesDoublePrecisionOverOddShapes) {
  for (const Shape shape : {Shape{1, 2, 1},
                            {1, 64, 16},
                            {2, 40, 33},
                            {3, 7, 5},
                            {4, 96, 100},
                            {5, 128, 64},
                            {7, 600, 40},
                            {11, 33, 17},
                            {64, 1100, 48},
                            {513, 70, 130}}) {
    ExpectMatchesDoublePrecision(shape, nullptr);
  }
}

// Those of the bf16 kernels that this CPU can run.
std::vector<Bf16Multiply> Bf16Kernels() {
  std::vector<Bf16Multiply> kernels;
  if (DetectCpuFeatures().avx512_bf16) kernels.push_back(MultiplyAvx512);
  if (DetectCpuFeatures().amx_bf16) kernels.push_back(MultiplyAmx);
  return kernels;
}

TEST(LinearBf16Test, MatchesDoublePrecision) {
  if (Bf16Kernels().empty()) GTEST_SKIP() << "this CPU has no bf16 products";
  for (Bf16Multiply kernel : Bf16Kernels()) {
    for (const Shape shape :
         {Shape{15, 64, 32}, {16, 64, 48}, {31, 96, 33}, {100, 1056, 16}, {413, 2080, 70}}) {
      ExpectMatchesDoublePrecision(shape, kernel);
    }
  }
}

TEST_P(LinearTest, AddsBiasAndWhatIsThere) {
  ThreadPool pool(2);
  constexpr Shape kShape = {9, 64, 50};
  BFloat16Matrix weight = BFloat16Matrix::Random(kShape.out, kShape.in, 1);
  BFloat16Matrix x = BFloat16Matrix::Random(kShape.tokens, kShape.in, 2);
  FloatMatrix bias = FloatMatrix::Random(1, kShape.out, 3);
  FloatMatrix residual = FloatMatrix::Random(kShape.tokens, kShape.out, 4);
  const auto packed = Pack(pool, weight, bias.vector());
  const FloatMatrix product = Multiply(1, weight, x, kShape);
  for (bool accumulate : {false, true}) {
    FloatMatrix y = residual;
    DenseProduct(pool, nullptr).Run(*packed, x.tensor(), y.tensor(), accumulate);
    for (int64_t t = 0; t < kShape.tokens; ++t) {
      for (int64_t n = 0; n < kShape.out; ++n) {
        const float added = bias.at(0, n) + (accumulate ? residual.at(t, n) : 0.0f);
        ASSERT_NEAR(y.at(t, n), product.at(t, n) + added, SumTolerance(kShape.in));
      }
    }
  }
}

TEST_P(LinearTest, BitsDependNeitherOnThreadsNorOnOtherRows) {
  constexpr Shape kShape = {713, 1056, 52};
  BFloat16Matrix weight = BFloat16Matrix::Random(kShape.out, kShape.in, 1);
  BFloat16Matrix x = BFloat16Matrix::Random(kShape.tokens, kShape.in, 2);
  const FloatMatrix y = Multiply(1, weight, x, kShape);
  for (int threads : {2, 3, 4}) {
    ASSERT_EQ(Multiply(threads, weight, x, kShape).values(), y.values()) << threads;
  }
  for (int64_t row : {0, 4, 5, 129, 130, 639, 640, 712}) {
    BFloat16Matrix alone(1, kShape.in);
    std::copy_n(x.values().begin() + row * kShape.in, kShape.in, alone.values().begin());
    const FloatMatrix y_alone = Multiply(1, weight, alone, {1, kShape.in, kShape.out});
    for (int64_t n = 0; n < kShape.out; ++n) ASSERT_EQ(y_alone.at(0, n), y.at(row, n)) << row;
  }
}

TEST_P(LinearTest, NothingHappensForNoTokens) {
  ThreadPool pool(2);
  BFloat16Matrix weight = BFloat16Matrix::Random(16, 32, 1);
  DenseProduct(pool).Run(*Pack(pool, weight), Tensor(nullptr, DType::kBF16, {0, 32}),
                         Tensor(nullptr, DType::kF32, {0, 16}), true);
}

TEST(PackedWeightTest, RefusesOtherTypesAndShapes) {
  ThreadPool pool(1);
  FloatMatrix floats(4, 4);
  EXPECT_EQ(PackedWeight::Pack(pool, floats.tensor(), Tensor()).status().code(),
            absl::StatusCode::kInvalidArgument);
  BFloat16Matrix weight(4, 4);
  FloatMatrix bias(1, 3);
  EXPECT_EQ(PackedWeight::Pack(pool, weight.tensor(), bias.vector()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

class LinearF32Test : public CpuTargetTest {};
MOED_INSTANTIATE_CPU_TARGETS(LinearF32Test);

TEST_P(LinearF32Test, MatchesDoublePrecisionOnAnyNumberOfThreads) {
  for (const Shape shape : {Shape{1, 64, 8}, {2, 33, 60}, {7, 5, 3}, {65, 130, 66}}) {
    FloatMatrix weight = FloatMatrix::Random(shape.out, shape.in, 1);
    FloatMatrix x = FloatMatrix::Random(shape.tokens, shape.in, 2);
    std::vector<float> bits_of_one_thread;
    for (int threads : {1, 3}) {
      ThreadPool pool(threads);
      FloatMatrix y(shape.tokens, shape.out);
      LinearF32Rows(pool, weight.tensor(), x.tensor(), y.tensor());
      for (int64_t t = 0; t < shape.tokens; ++t) {
        for (int64_t n = 0; n < shape.out; ++n) {
          double sum = 0;
          for (int64_t k = 0; k < shape.in; ++k) sum += double{x.at(t, k)} * weight.at(n, k);
          ASSERT_NEAR(y.at(t, n), sum, SumTolerance(shape.in));
        }
      }
      if (threads == 1) bits_of_one_thread = y.values();
      EXPECT_EQ(y.values(), bits_of_one_thread);
    }
  }
}

}  // namespace
}  // namespace moed::backend
