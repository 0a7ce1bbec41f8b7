#include "runtime/backend/cpu/linear.h"

#include <algorithm>
#include <array>

#include "runtime/backend/cpu/panel_product.h"

namespace moed::backend {
namespace {

// Rows of x that are float32 at a time: enough to make another read of the weights cheap, few
// enough to bound the workspace.
constexpr int64_t kChunkRows = 400;
// Of those, a task takes a block whose float32 rows stay in the second-level cache for one pass
// over a cut of the depth, while a panel's cut stays in the first.
constexpr int64_t kBlockRows = 100;
constexpr int64_t kDepthCut = 512;
// Panels of a task: what a core reads from memory while it goes over the block.
constexpr int64_t kBlockPanels = 8;

static_assert(kChunkRows % kBlockRows == 0 && kBlockRows % kTileRows == 0);

// One product, cut into blocks of rows and panels; all of it lives for one LinearRows call.
struct Product {
  const PackedWeight& weight;
  const float* x = nullptr;  // packed rows
  int64_t rows = 0;
  float* out = nullptr;  // [rows, out_features]
  bool accumulate = false;
};

// x [rows, in] bf16 to float32 tiles [depth][rows of the tile].
void UnpackRows(ThreadPool& pool, const BFloat16* x, int64_t rows, const PackedWeight& weight,
                float* unpacked) {
  const int64_t in = weight.in_features();
  const int64_t depth = weight.depth();
  auto unpack_tiles = [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin * kTileRows; row < std::min(rows, end * kTileRows); ++row) {
      const PackedRow to = PackedRowAt(row, rows, depth);
      float* values = unpacked + to.offset;
      for (int64_t k = 0; k < in; ++k) values[k * to.depth_stride] = ToFloat(x[row * in + k]);
      for (int64_t k = in; k < depth; ++k) values[k * to.depth_stride] = 0;
    }
  };
  constexpr int64_t kValuesPerChunk = 32 * 1024;
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  pool.ParallelFor(tiles, 1 + kValuesPerChunk / (kTileRows * depth), unpack_tiles);
}

// What a sum starts from: the bias, and what is in `out` already.
void StartSums(const Product& product, int64_t row, int64_t first, int64_t count, float* sums) {
  const std::vector<float>& bias = product.weight.bias();
  const float* out = product.out + row * product.weight.out_features() + first;
  for (int64_t n = 0; n < count; ++n) {
    sums[n] = (product.accumulate ? out[n] : 0.0f) + (bias.empty() ? 0.0f : bias[first + n]);
  }
}

// Rows [row_begin, row_begin + rows) times panels; `sums` [rows, panels * 16] as StartSums left it.
void MultiplyBlock(const Product& product, int64_t row_begin, int64_t rows, int64_t panel_begin,
                   int64_t panels, float* sums, int64_t sums_stride) {
  const int64_t depth = product.weight.depth();
  const PanelProduct block = {.a = product.x + row_begin * depth,
                              .rows = rows,
                              .depth = depth,
                              .panels = product.weight.panel(panel_begin),
                              .panel_stride = product.weight.panel_elements(),
                              .num_panels = panels,
                              .c = sums,
                              .c_stride = sums_stride};
  // A single tile of rows passes over each panel once: then long reads are best.
  const int64_t cut = rows <= kTileRows ? depth : kDepthCut;
  for (int64_t k = 0; k < depth; k += cut) {
    AccumulatePanels(block, k, std::min(depth, k + cut));
  }
}

// The last panel where `out` is no multiple of 16: its sums do not fit into `out`.
void ComputePartialPanel(const Product& product, int64_t row_begin, int64_t rows, int64_t panel) {
  const int64_t first = panel * kPanelColumns;
  const int64_t count = product.weight.out_features() - first;
  std::array<float, kBlockRows* kPanelColumns> sums = {};
  for (int64_t r = 0; r < rows; ++r) {
    StartSums(product, row_begin + r, first, count, sums.data() + r * kPanelColumns);
  }
  MultiplyBlock(product, row_begin, rows, panel, 1, sums.data(), kPanelColumns);
  for (int64_t r = 0; r < rows; ++r) {
    std::copy_n(sums.data() + r * kPanelColumns, count,
                product.out + (row_begin + r) * product.weight.out_features() + first);
  }
}

void ComputeBlock(const Product& product, int64_t row_begin, int64_t rows, int64_t panel_begin,
                  int64_t panel_end) {
  const int64_t width = product.weight.out_features();
  const int64_t whole_end = std::min(panel_end, width / kPanelColumns);
  if (whole_end > panel_begin) {
    const int64_t first = panel_begin * kPanelColumns;
    for (int64_t row = row_begin; row < row_begin + rows; ++row) {
      StartSums(product, row, first, (whole_end - panel_begin) * kPanelColumns,
                product.out + row * width + first);
    }
    MultiplyBlock(product, row_begin, rows, panel_begin, whole_end - panel_begin,
                  product.out + row_begin * width + first, width);
  }
  if (whole_end < panel_end) ComputePartialPanel(product, row_begin, rows, whole_end);
}

void MultiplyChunk(ThreadPool& pool, const Product& product) {
  const int64_t panels = product.weight.num_panels();
  const int64_t row_blocks = (product.rows + kBlockRows - 1) / kBlockRows;
  const int64_t panel_blocks = (panels + kBlockPanels - 1) / kBlockPanels;
  auto compute_blocks = [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row_begin = i / panel_blocks * kBlockRows;
      const int64_t panel_begin = i % panel_blocks * kBlockPanels;
      ComputeBlock(product, row_begin, std::min(kBlockRows, product.rows - row_begin), panel_begin,
                   std::min(panels, panel_begin + kBlockPanels));
    }
  };
  pool.ParallelFor(row_blocks * panel_blocks, 1, compute_blocks);
}

}  // namespace

void LinearRows(ThreadPool& pool, const PackedWeight& weight, const Tensor& x, const Tensor& out,
                bool accumulate, std::vector<float>& workspace) {
  const int64_t tokens = x.dim(0);
  const auto needed = static_cast<size_t>(std::min(tokens, kChunkRows) * weight.depth());
  if (workspace.size() < needed) workspace.resize(needed);
  for (int64_t begin = 0; begin < tokens; begin += kChunkRows) {
    const int64_t rows = std::min(kChunkRows, tokens - begin);
    UnpackRows(pool, x.As<BFloat16>() + begin * weight.in_features(), rows, weight,
               workspace.data());
    MultiplyChunk(pool, {.weight = weight,
                         .x = workspace.data(),
                         .rows = rows,
                         .out = out.As<float>() + begin * weight.out_features(),
                         .accumulate = accumulate});
  }
}

}  // namespace moed::backend
