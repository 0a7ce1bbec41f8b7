#include "runtime/backend/cpu/experts.h"

#include <algorithm>
#include <cmath>

#include "runtime/backend/dtype.h"

namespace moed::backend {
namespace {

float Dot(const BFloat16* a, const BFloat16* b, int64_t width) {
  float sum = 0;
  for (int64_t i = 0; i < width; ++i) sum += ToFloat(a[i]) * ToFloat(b[i]);
  return sum;
}

void ComputeRow(const ExpertFormat& format, const std::byte* blob, const BFloat16* x, float* out) {
  const int64_t hidden = format.hidden();
  std::fill_n(out, hidden, 0.0f);
  for (int64_t i = 0; i < format.intermediate(); ++i) {
    const auto* neuron = reinterpret_cast<const BFloat16*>(blob + i * format.neuron_bytes());
    const float gate = Dot(neuron, x, hidden);
    const float up = Dot(neuron + format.row_values(), x, hidden);
    const float activation = ToFloat(ToBFloat16(gate / (1.0f + std::exp(-gate)) * up));
    for (int64_t h = 0; h < hidden; ++h) out[h] += activation * ToFloat(neuron[2 * format.row_values() + h]);
  }
}

}  // namespace

void ComputeExperts(ThreadPool& pool, const ExpertFormat& format, std::span<const ExpertWork> work,
                    int top_k, const Tensor& x, const Tensor& out) {
  const int64_t hidden = format.hidden();
  for (const ExpertWork& item : work) {
    auto body = [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = item.rows[i];
        ComputeRow(format, item.blob, x.As<BFloat16>() + row / top_k * hidden,
                   out.As<float>() + row * hidden);
      }
    };
    pool.ParallelFor(static_cast<int64_t>(item.rows.size()), 1, body);
  }
}

}  // namespace moed::backend
