#include "runtime/backend/cpu/rms_norm.h"

#include <cmath>

#include "runtime/backend/dtype.h"

namespace moed::backend {

void RmsNormRow(const float* x, const float* weight, int64_t width, float epsilon, float* out) {
  float sum = 0;
  for (int64_t i = 0; i < width; ++i) sum += x[i] * x[i];
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(width) + epsilon);
  for (int64_t i = 0; i < width; ++i) out[i] = x[i] * scale * weight[i];
}

void RmsNormRows(ThreadPool& pool, const Tensor& x, const Tensor& weight, float epsilon,
                 const Tensor& out, const Tensor& out_f32) {
  const int64_t width = x.dim(1);
  auto body = [&](int64_t begin, int64_t end, int) {
    std::vector<float> row(width);
    for (int64_t t = begin; t < end; ++t) {
      RmsNormRow(x.As<float>() + t * width, weight.As<float>(), width, epsilon, row.data());
      for (int64_t i = 0; i < width; ++i) out.As<BFloat16>()[t * width + i] = ToBFloat16(row[i]);
      if (out_f32.empty()) continue;
      for (int64_t i = 0; i < width; ++i) out_f32.As<float>()[t * width + i] = row[i];
    }
  };
  pool.ParallelFor(x.dim(0), 4, body);
}

}  // namespace moed::backend
