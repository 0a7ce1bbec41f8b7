#include "runtime/backend/cpu/swiglu.h"

#include <algorithm>
#include <cstdint>

#include "runtime/backend/cpu/experts_activation.h"
#include "runtime/backend/dtype.h"

namespace moed::backend {

void SwiGluRows(ThreadPool& pool, const Tensor& gate_up, const Tensor& out) {
  const int64_t width = out.dim(1);
  // Rows are cut, so that a single token keeps several threads busy.
  constexpr int64_t kPieceWidth = 2048;
  const int64_t pieces = (width + kPieceWidth - 1) / kPieceWidth;
  auto body = [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / pieces;
      const int64_t first = i % pieces * kPieceWidth;
      const float* gate = gate_up.As<float>() + row * 2 * width + first;
      ActivateSwiGlu(gate, gate + width, std::min(kPieceWidth, width - first),
                     out.As<BFloat16>() + row * width + first);
    }
  };
  constexpr int64_t kPiecesPerChunk = 4;
  pool.ParallelFor(out.dim(0) * pieces, kPiecesPerChunk, body);
}

}  // namespace moed::backend
