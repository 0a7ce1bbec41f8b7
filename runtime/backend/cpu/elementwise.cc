#include "runtime/backend/cpu/elementwise.h"

#include <cmath>
#include <cstring>

#include "runtime/backend/dtype.h"

namespace moed::backend {
namespace {

// Rows per chunk, so that a chunk moves enough bytes to be worth a worker's wake-up.
int64_t RowsPerChunk(int64_t floats_per_row) {
  constexpr int64_t kFloatsPerChunk = 16 * 1024;
  return 1 + kFloatsPerChunk / (floats_per_row + 1);
}

}  // namespace

void EmbedRows(ThreadPool& pool, const Tensor& table, std::span<const int32_t> token_ids,
               const Tensor& out) {
  const int64_t hidden = table.dim(1);
  auto body = [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const BFloat16* row = table.As<const BFloat16>() + token_ids[t] * hidden;
      float* to = out.As<float>() + t * hidden;
      for (int64_t i = 0; i < hidden; ++i) to[i] = ToFloat(row[i]);
    }
  };
  pool.ParallelFor(static_cast<int64_t>(token_ids.size()), RowsPerChunk(hidden), body);
}

void CombineExpertRows(ThreadPool& pool, const Tensor& expert_out, const Tensor& weights,
                       const Tensor& residual) {
  const int64_t hidden = residual.dim(1);
  const int64_t top_k = weights.dim(1);
  auto body = [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      float* sum = residual.As<float>() + t * hidden;
      for (int64_t r = t * top_k; r < (t + 1) * top_k; ++r) {
        const float weight = weights.As<float>()[r];
        const float* row = expert_out.As<float>() + r * hidden;
        for (int64_t i = 0; i < hidden; ++i) sum[i] += weight * row[i];
      }
    }
  };
  pool.ParallelFor(residual.dim(0), RowsPerChunk(hidden * top_k), body);
}

void AddSharedRows(ThreadPool& pool, const Tensor& shared, const Tensor& gate_logits,
                   const Tensor& residual) {
  const int64_t hidden = residual.dim(1);
  auto body = [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const float gate =
          gate_logits.empty() ? 1.0f : 1.0f / (1.0f + std::exp(-gate_logits.As<float>()[t]));
      const float* row = shared.As<float>() + t * hidden;
      float* sum = residual.As<float>() + t * hidden;
      for (int64_t i = 0; i < hidden; ++i) sum[i] += gate * row[i];
    }
  };
  pool.ParallelFor(residual.dim(0), RowsPerChunk(hidden), body);
}

void GatherTensorRows(ThreadPool& pool, const Tensor& x, std::span<const int32_t> rows,
                      const Tensor& out) {
  const int64_t hidden = x.dim(1);
  auto body = [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(out.As<float>() + i * hidden, x.As<float>() + rows[i] * hidden,
                  hidden * sizeof(float));
    }
  };
  pool.ParallelFor(static_cast<int64_t>(rows.size()), RowsPerChunk(hidden), body);
}

}  // namespace moed::backend
