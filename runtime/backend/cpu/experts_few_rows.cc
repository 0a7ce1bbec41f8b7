#include "runtime/backend/cpu/experts_few_rows.h"

#include <algorithm>

namespace moed::backend {
namespace {

// Partial outputs alive at once; more work goes in waves.
constexpr int64_t kMaxPartialFloats = int64_t{8} << 20;

// Columns of an output row added by one thread at a time.
constexpr int64_t kSumColumns = 512;

// Neurons of a piece. 32 keep partial outputs at 2 % of the bytes read; each more row adds a
// partial, so pieces grow with them up to a point. Large experts are cut in 64 at most.
int64_t PieceNeurons(int64_t intermediate, int64_t rows) {
  constexpr int64_t kTile = 32;
  constexpr int64_t kMaxPieces = 64;
  const int64_t tiles = (intermediate + kTile - 1) / kTile;
  return kTile * std::max((tiles + kMaxPieces - 1) / kMaxPieces, std::min<int64_t>(rows, 4));
}

}  // namespace

FewRowsExperts::FewRowsExperts(ThreadPool& pool, const ExpertKernels& kernels)
    : pool_(pool), kernels_(kernels) {}

// Returns the floats of their partial outputs, which begin at `partial`.
int64_t FewRowsExperts::AddPieces(const ExpertsCall& call, const ExpertWork& item,
                                  int64_t partial) {
  const auto rows = static_cast<int64_t>(item.rows.size());
  const int64_t intermediate = call.format.intermediate();
  const int64_t width = call.format.row_values();
  const int64_t size = PieceNeurons(intermediate, rows);
  const int64_t num_pieces = (intermediate + size - 1) / size;
  for (int64_t i = 0; i < num_pieces; ++i) {
    pieces_.push_back({.item = &item,
                       .first = i * size,
                       .count = std::min(size, intermediate - i * size),
                       .partial = partial + i * rows * width});
  }
  for (int64_t r = 0; r < rows; ++r) {
    sums_.push_back({.out = call.OutRow(item.rows[r]),
                     .partial = partial + r * width,
                     .stride = rows * width,
                     .count = num_pieces});
  }
  return num_pieces * rows * width;
}

void FewRowsExperts::Run(const ExpertsCall& call, std::span<const ExpertWork> items) {
  int64_t num_floats = 0;
  for (const ExpertWork& item : items) {
    num_floats += AddPieces(call, item, num_floats);
    if (num_floats >= kMaxPartialFloats || &item == &items.back()) {
      RunPieces(call, num_floats);
      pieces_.clear();
      sums_.clear();
      num_floats = 0;
    }
  }
}

void FewRowsExperts::RunPieces(const ExpertsCall& call, int64_t num_floats) {
  const int64_t width = call.format.row_values();
  const int64_t hidden = call.format.hidden();
  float* const partials = partials_.Reserve(num_floats);
  const int64_t scratch_size = kernels_.few_rows_limit * width;
  float* const scratch = kernel_scratch_.Reserve(pool_.num_threads() * scratch_size);
  pool_.ParallelFor(pieces_.size(), 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      const Piece& piece = pieces_[i];
      const BFloat16* x[kMaxFewRows];
      float* y[kMaxFewRows];
      const auto rows = static_cast<int>(piece.item->rows.size());
      float* const partial = partials + piece.partial;
      for (int r = 0; r < rows; ++r) {
        x[r] = call.XRow(piece.item->rows[r]);
        y[r] = partial + r * width;
      }
      std::fill_n(partial, rows * width, 0.0f);
      kernels_.few_rows({call.format, piece.item->blob, piece.first, piece.count},
                        {.x = x,
                         .num = rows,
                         .width = width,
                         .scratch = scratch + worker * scratch_size,
                         .y = y});
      kernels_.order_sums(partial, rows * width);
    }
  });
  const int64_t chunks = (hidden + kSumColumns - 1) / kSumColumns;
  pool_.ParallelFor(sums_.size() * chunks, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const Sum& sum = sums_[i / chunks];
      const int64_t column = i % chunks * kSumColumns;
      const int64_t columns = std::min(kSumColumns, hidden - column);
      const float* partial = partials + sum.partial + column;
      std::copy_n(partial, columns, sum.out + column);
      for (int64_t p = 1; p < sum.count; ++p) {
        partial += sum.stride;
        for (int64_t c = 0; c < columns; ++c) sum.out[column + c] += partial[c];
      }
    }
  });
}

}  // namespace moed::backend
