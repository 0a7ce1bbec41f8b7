#include "runtime/backend/cpu/swiglu.h"

#include <cmath>

#include "runtime/backend/dtype.h"

namespace moed::backend {

void SwiGluRows(ThreadPool& pool, const Tensor& gate_up, const Tensor& out) {
  const int64_t width = out.dim(1);
  auto body = [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const float* gate = gate_up.As<float>() + t * 2 * width;
      const float* up = gate + width;
      for (int64_t i = 0; i < width; ++i) {
        out.As<BFloat16>()[t * width + i] =
            ToBFloat16(gate[i] / (1.0f + std::exp(-gate[i])) * up[i]);
      }
    }
  };
  pool.ParallelFor(out.dim(0), 1, body);
}

}  // namespace moed::backend
