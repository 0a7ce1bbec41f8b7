#include "runtime/backend/cpu/linear_f32.h"

#include <algorithm>
#include <cstdint>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/backend/cpu/linear_f32.cc"
#include "hwy/foreach_target.h"
// Highway's own headers come after foreach_target.h.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace moed::backend {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;

// Dot products of kRows rows of x with kOutputs rows of W; each is one vector of partial sums over
// the depth in rising order, so it does not depend on what it is computed with.
template <int kRows, int kOutputs>
HWY_INLINE void DotProducts(const float* HWY_RESTRICT x, const float* HWY_RESTRICT weight,
                            int64_t depth, float* HWY_RESTRICT out, int64_t out_stride) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  hn::Vec<Floats> sums[kRows][kOutputs];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < kOutputs; ++n) sums[r][n] = hn::Zero(d);
  }
  int64_t k = 0;
  for (; k + lanes <= depth; k += lanes) {
    hn::Vec<Floats> rows[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) rows[r] = hn::LoadU(d, x + r * depth + k);
#pragma GCC unroll 4
    for (int n = 0; n < kOutputs; ++n) {
      const auto weights = hn::LoadU(d, weight + n * depth + k);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sums[r][n] = hn::MulAdd(rows[r], weights, sums[r][n]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kOutputs; ++n) {
      float sum = hn::GetLane(hn::SumOfLanes(d, sums[r][n]));
      for (int64_t i = k; i < depth; ++i) sum += x[r * depth + i] * weight[n * depth + i];
      out[r * out_stride + n] = sum;
    }
  }
}

// out[rows, n_begin..n_end) for kRows rows of x.
template <int kRows>
HWY_INLINE void DotRows(const float* x, const float* weight, int64_t depth, int64_t outputs,
                        float* out, int64_t out_stride) {
  int64_t n = 0;
  for (; n + 4 <= outputs; n += 4) {
    DotProducts<kRows, 4>(x, weight + n * depth, depth, out + n, out_stride);
  }
  for (; n < outputs; ++n) {
    DotProducts<kRows, 1>(x, weight + n * depth, depth, out + n, out_stride);
  }
}

void DotBlock(const float* x, int64_t rows, const float* weight, int64_t depth, int64_t outputs,
              float* out, int64_t out_stride) {
  int64_t r = 0;
  for (; r + 2 <= rows; r += 2) {
    DotRows<2>(x + r * depth, weight, depth, outputs, out + r * out_stride, out_stride);
  }
  if (r < rows) DotRows<1>(x + r * depth, weight, depth, outputs, out + r * out_stride, out_stride);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace moed::backend
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moed::backend {

HWY_EXPORT(DotBlock);

void LinearF32Rows(ThreadPool& pool, const Tensor& weight, const Tensor& x, const Tensor& out) {
  // A task's weights (8 rows) and rows of x stay in the second-level cache.
  constexpr int64_t kOutputs = 8;
  constexpr int64_t kRows = 32;
  const int64_t outputs = weight.dim(0);
  const int64_t depth = weight.dim(1);
  const int64_t output_blocks = (outputs + kOutputs - 1) / kOutputs;
  const int64_t row_blocks = (x.dim(0) + kRows - 1) / kRows;
  auto compute_blocks = [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / output_blocks * kRows;
      const int64_t first = i % output_blocks * kOutputs;
      HWY_DYNAMIC_DISPATCH(DotBlock)
      (x.As<float>() + row * depth, std::min(kRows, x.dim(0) - row),
       weight.As<float>() + first * depth, depth, std::min(kOutputs, outputs - first),
       out.As<float>() + row * outputs + first, outputs);
    }
  };
  pool.ParallelFor(row_blocks * output_blocks, 1, compute_blocks);
}

}  // namespace moed::backend
#endif
