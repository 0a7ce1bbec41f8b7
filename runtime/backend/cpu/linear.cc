#include "runtime/backend/cpu/linear.h"

#include <algorithm>
#include <array>

#include "runtime/backend/cpu/cpu_features.h"
#include "runtime/backend/cpu/experts_amx.h"
#include "runtime/backend/cpu/experts_avx512.h"
#include "runtime/backend/cpu/panel_product.h"

namespace moed::backend {
namespace {

// Rows of x taken at a time: enough to make another read of the weights cheap, few enough to bound
// the memory that their other form needs.
constexpr int64_t kChunkRows = 640;
// Of those, a task takes a block whose rows stay in the second-level cache for one pass over a cut
// of the depth, while a panel's cut stays in the first.
constexpr int64_t kMaxBlockRows = 128;
constexpr int64_t kDepthCut = 512;
// Panels of a task: what a core reads from memory while it goes over the block.
constexpr int64_t kBlockPanels = 8;

// From so many rows on bf16 products pay: an AMX tile has 16 rows, and below memory is the limit.
constexpr int64_t kBf16Rows = 16;
// Rows of blocks are a multiple of what a kernel takes at once.
constexpr int64_t kBf16BlockMultiple = 32;
// Between bf16 rows, so that they do not lie a power of two apart: a tile reads 16 of them.
constexpr int64_t kBf16Padding = 32;

// Values that a worker brings into another form at a time.
constexpr int64_t kValuesPerChunk = 32 * 1024;

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Cuts `rows` into blocks of about the same size.
int64_t BlockRows(int64_t rows, int64_t multiple) {
  const int64_t max_rows = kMaxBlockRows / multiple * multiple;
  const int64_t blocks = (rows + max_rows - 1) / max_rows;
  return RoundUp((rows + blocks - 1) / blocks, multiple);
}

// What sums start from: the bias, and what is in `out` already. count <= out features - first.
void StartSums(const PackedWeight& weight, const float* out, bool accumulate, int64_t first,
               int64_t count, float* sums) {
  const std::vector<float>& bias = weight.bias();
  for (int64_t n = 0; n < count; ++n) {
    sums[n] = (accumulate ? out[n] : 0.0f) + (bias.empty() ? 0.0f : bias[first + n]);
  }
}

}  // namespace

Bf16Multiply BestBf16Multiply() {
  const CpuFeatures& features = DetectCpuFeatures();
  if (features.amx_bf16) return MultiplyAmx;
  if (features.avx512_bf16) return MultiplyAvx512;
  return nullptr;
}

void DenseProduct::Run(const PackedWeight& weight, const Tensor& x, const Tensor& out,
                       bool accumulate) {
  const int64_t tokens = x.dim(0);
  for (int64_t begin = 0; begin < tokens; begin += kChunkRows) {
    Chunk chunk = {.weight = weight,
                   .rows = std::min(kChunkRows, tokens - begin),
                   .out = out.As<float>() + begin * weight.out_features(),
                   .accumulate = accumulate};
    const BFloat16* chunk_x = x.As<BFloat16>() + begin * weight.in_features();
    if (bf16_multiply_ != nullptr && chunk.rows >= kBf16Rows) {
      chunk.bf16_stride = weight.depth() + kBf16Padding;
      chunk.bf16_rows = PadRows(weight, chunk_x, chunk.rows, chunk.bf16_stride);
    } else {
      chunk.tiles = UnpackToTiles(weight, chunk_x, chunk.rows);
    }
    MultiplyChunk(chunk);
  }
}

const float* DenseProduct::UnpackToTiles(const PackedWeight& weight, const BFloat16* x,
                                         int64_t rows) {
  const int64_t in = weight.in_features();
  const int64_t depth = weight.depth();
  tiles_.resize(std::max<size_t>(tiles_.size(), rows * depth));
  auto unpack_tiles = [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin * kTileRows; row < std::min(rows, end * kTileRows); ++row) {
      const PackedRow to = PackedRowAt(row, rows, depth);
      float* values = tiles_.data() + to.offset;
      for (int64_t k = 0; k < in; ++k) values[k * to.depth_stride] = ToFloat(x[row * in + k]);
      for (int64_t k = in; k < depth; ++k) values[k * to.depth_stride] = 0;
    }
  };
  const int64_t num_tiles = (rows + kTileRows - 1) / kTileRows;
  pool_.ParallelFor(num_tiles, 1 + kValuesPerChunk / (kTileRows * depth), unpack_tiles);
  return tiles_.data();
}

// Rows of x, `stride` apart, with zeros up to the weight's depth.
const BFloat16* DenseProduct::PadRows(const PackedWeight& weight, const BFloat16* x, int64_t rows,
                                      int64_t stride) {
  const int64_t in = weight.in_features();
  bf16_rows_.resize(std::max<size_t>(bf16_rows_.size(), rows * stride));
  auto pad_rows = [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      BFloat16* values = bf16_rows_.data() + row * stride;
      std::copy_n(x + row * in, in, values);
      std::fill_n(values + in, weight.depth() - in, BFloat16{0});
    }
  };
  pool_.ParallelFor(rows, 1 + kValuesPerChunk / stride, pad_rows);
  return bf16_rows_.data();
}

void DenseProduct::MultiplyChunk(const Chunk& chunk) const {
  const int64_t block_rows =
      BlockRows(chunk.rows, chunk.bf16_rows != nullptr ? kBf16BlockMultiple : kTileRows);
  const int64_t panels = chunk.weight.num_panels();
  const int64_t row_blocks = (chunk.rows + block_rows - 1) / block_rows;
  const int64_t panel_blocks = (panels + kBlockPanels - 1) / kBlockPanels;
  auto compute_blocks = [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row_begin = i / panel_blocks * block_rows;
      const int64_t panel_begin = i % panel_blocks * kBlockPanels;
      ComputeBlock(chunk, row_begin, std::min(block_rows, chunk.rows - row_begin), panel_begin,
                   std::min(panels, panel_begin + kBlockPanels));
    }
  };
  pool_.ParallelFor(row_blocks * panel_blocks, 1, compute_blocks);
}

void DenseProduct::ComputeBlock(const Chunk& chunk, int64_t row_begin, int64_t rows,
                                int64_t panel_begin, int64_t panel_end) const {
  const int64_t width = chunk.weight.out_features();
  const int64_t whole_end = std::min(panel_end, width / kPanelColumns);
  if (whole_end > panel_begin) {
    const int64_t first = panel_begin * kPanelColumns;
    float* out = chunk.out + row_begin * width + first;
    for (int64_t r = 0; r < rows; ++r) {
      StartSums(chunk.weight, out + r * width, chunk.accumulate, first,
                (whole_end - panel_begin) * kPanelColumns, out + r * width);
    }
    AddProducts(chunk, row_begin, rows, panel_begin, whole_end - panel_begin, out, width);
  }
  if (whole_end < panel_end) ComputePartialPanel(chunk, row_begin, rows, whole_end);
}

// The last panel where `out` is no multiple of 16: its sums do not fit into `out`.
void DenseProduct::ComputePartialPanel(const Chunk& chunk, int64_t row_begin, int64_t rows,
                                       int64_t panel) const {
  const int64_t width = chunk.weight.out_features();
  const int64_t first = panel * kPanelColumns;
  float* out = chunk.out + row_begin * width + first;
  std::array<float, kMaxBlockRows* kPanelColumns> sums = {};
  for (int64_t r = 0; r < rows; ++r) {
    StartSums(chunk.weight, out + r * width, chunk.accumulate, first, width - first,
              sums.data() + r * kPanelColumns);
  }
  AddProducts(chunk, row_begin, rows, panel, 1, sums.data(), kPanelColumns);
  for (int64_t r = 0; r < rows; ++r) {
    std::copy_n(sums.data() + r * kPanelColumns, width - first, out + r * width);
  }
}

// sums [rows, panels * 16] += rows [row_begin, row_begin + rows) of x times panels of W.
void DenseProduct::AddProducts(const Chunk& chunk, int64_t row_begin, int64_t rows,
                               int64_t panel_begin, int64_t panels, float* sums,
                               int64_t sums_stride) const {
  const int64_t depth = chunk.weight.depth();
  if (chunk.bf16_rows != nullptr) {
    bf16_multiply_({.a = chunk.bf16_rows + row_begin * chunk.bf16_stride,
                    .a_stride = chunk.bf16_stride,
                    .rows = rows,
                    .depth = depth,
                    .panels = chunk.weight.panel(panel_begin),
                    .panel_stride = chunk.weight.panel_elements(),
                    .num_panels = panels,
                    .c = sums,
                    .c_stride = sums_stride,
                    .accumulate = true});
    return;
  }
  const PanelProduct product = {.a = chunk.tiles + row_begin * depth,
                                .rows = rows,
                                .depth = depth,
                                .panels = chunk.weight.panel(panel_begin),
                                .panel_stride = chunk.weight.panel_elements(),
                                .num_panels = panels,
                                .c = sums,
                                .c_stride = sums_stride};
  // A single tile of rows passes over each panel once: then long reads are best.
  const int64_t cut = rows <= kTileRows ? depth : kDepthCut;
  for (int64_t k = 0; k < depth; k += cut) {
    AccumulatePanels(product, k, std::min(depth, k + cut));
  }
}

}  // namespace moed::backend
