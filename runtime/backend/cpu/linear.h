// The dense layers' product on the CPU: y = x W^T + b with packed bf16 weights. A weight is read
// from memory once for up to 640 rows. Few rows run in float32 on every CPU (panel_product.h);
// many run on bf16 products (AVX512-BF16, AMX) where the CPU has them. In each, the bits of a row
// of y depend neither on the other rows nor on threads.
#pragma once

#include <vector>

#include "runtime/backend/cpu/experts_kernels.h"
#include "runtime/backend/cpu/packed_weight.h"
#include "runtime/backend/cpu/thread_pool.h"
#include "runtime/backend/tensor.h"

namespace moed::backend {

// C += A B with bf16 factors; null: there is none on this CPU.
using Bf16Multiply = void (*)(const PanelMultiply&);
Bf16Multiply BestBf16Multiply();

// Owned by CpuBackend; engine thread.
class DenseProduct {
 public:
  explicit DenseProduct(ThreadPool& pool, Bf16Multiply bf16_multiply = BestBf16Multiply())
      : pool_(pool), bf16_multiply_(bf16_multiply) {}

  // x [T, in] bf16 -> out [T, out] f32; added to what is there if `accumulate`.
  void Run(const PackedWeight& weight, const Tensor& x, const Tensor& out, bool accumulate);

 private:
  // Rows of one Run that are multiplied together, in the form that the kernel takes: float32 tiles
  // (panel_product.h), or bf16 rows.
  struct Chunk {
    const PackedWeight& weight;
    const float* tiles = nullptr;
    const BFloat16* bf16_rows = nullptr;  // null: tiles
    int64_t bf16_stride = 0;
    int64_t rows = 0;
    float* out = nullptr;  // [rows, out]
    bool accumulate = false;
  };

  const float* UnpackToTiles(const PackedWeight& weight, const BFloat16* x, int64_t rows);
  const BFloat16* PadRows(const PackedWeight& weight, const BFloat16* x, int64_t rows,
                          int64_t stride);
  void MultiplyChunk(const Chunk& chunk) const;
  void ComputeBlock(const Chunk& chunk, int64_t row_begin, int64_t rows, int64_t panel_begin,
                    int64_t panel_end) const;
  void ComputePartialPanel(const Chunk& chunk, int64_t row_begin, int64_t rows,
                           int64_t panel) const;
  void AddProducts(const Chunk& chunk, int64_t row_begin, int64_t rows, int64_t panel_begin,
                   int64_t panels, float* sums, int64_t sums_stride) const;

  ThreadPool& pool_;
  Bf16Multiply bf16_multiply_;
  std::vector<float> tiles_;
  std::vector<BFloat16> bf16_rows_;
};

}  // namespace moed::backend
