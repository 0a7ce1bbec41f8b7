#include "runtime/backend/cpu/rms_norm.h"

#include <cmath>
#include <vector>

#include "runtime/backend/cpu/experts_layout.h"
#include "runtime/backend/dtype.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/backend/cpu/rms_norm.cc"
#include "hwy/foreach_target.h"
// Highway's own headers come after foreach_target.h.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace moed::backend {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

float SumOfSquares(const float* x, int64_t width) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  // Four chains hide the latency of a multiply-add.
  auto sum0 = hn::Zero(d);
  auto sum1 = hn::Zero(d);
  auto sum2 = hn::Zero(d);
  auto sum3 = hn::Zero(d);
  const auto add_square = [&](int64_t i, auto sum) HWY_ATTR {
    const auto value = hn::LoadU(d, x + i);
    return hn::MulAdd(value, value, sum);
  };
  int64_t i = 0;
  for (; i + 4 * lanes <= width; i += 4 * lanes) {
    sum0 = add_square(i, sum0);
    sum1 = add_square(i + lanes, sum1);
    sum2 = add_square(i + 2 * lanes, sum2);
    sum3 = add_square(i + 3 * lanes, sum3);
  }
  for (; i + lanes <= width; i += lanes) sum0 = add_square(i, sum0);
  const auto sums = hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3));
  float sum = hn::GetLane(hn::SumOfLanes(d, sums));
  for (; i < width; ++i) sum += x[i] * x[i];
  return sum;
}

void Scale(const float* x, const float* weight, int64_t width, float scale, float* out) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto by = hn::Set(d, scale);
  int64_t i = 0;
  for (; i + lanes <= width; i += lanes) {
    const auto scaled = hn::Mul(hn::LoadU(d, x + i), by);
    hn::StoreU(hn::Mul(scaled, hn::LoadU(d, weight + i)), d, out + i);
  }
  for (; i < width; ++i) out[i] = x[i] * scale * weight[i];
}

void NormalizeRow(const float* x, const float* weight, int64_t width, float epsilon, float* out) {
  const float mean = SumOfSquares(x, width) / static_cast<float>(width);
  Scale(x, weight, width, 1.0f / std::sqrt(mean + epsilon), out);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace moed::backend
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moed::backend {

HWY_EXPORT(NormalizeRow);

void RmsNormRow(const float* x, const float* weight, int64_t width, float epsilon, float* out) {
  HWY_DYNAMIC_DISPATCH(NormalizeRow)(x, weight, width, epsilon, out);
}

void RmsNormRows(ThreadPool& pool, const Tensor& x, const Tensor& weight, float epsilon,
                 const Tensor& out, const Tensor& out_f32) {
  const int64_t width = x.dim(1);
  auto body = [&](int64_t begin, int64_t end, int) {
    std::vector<float> scratch(out_f32.empty() ? width : 0);
    for (int64_t t = begin; t < end; ++t) {
      float* row = out_f32.empty() ? scratch.data() : out_f32.As<float>() + t * width;
      RmsNormRow(x.As<float>() + t * width, weight.As<float>(), width, epsilon, row);
      FloatsToBFloat16(row, width, out.As<BFloat16>() + t * width);
    }
  };
  constexpr int64_t kTokensPerChunk = 8;
  pool.ParallelFor(x.dim(0), kTokensPerChunk, body);
}

}  // namespace moed::backend
#endif
