#include "runtime/backend/cpu/experts_many_rows.h"

#include <algorithm>

#include "runtime/backend/bf12.h"
#include "runtime/backend/cpu/experts_activation.h"
#include "runtime/backend/cpu/experts_layout.h"
#include "runtime/backend/cpu/panel.h"

namespace moed::backend {
namespace {

// Packed rows and activations alive at once; more rows go in waves.
constexpr int64_t kMaxWaveBytes = int64_t{64} << 20;

// Blocks of the first product: their sums (128 KiB) and a slice of the panels stay in the L2 cache.
constexpr int64_t kGateUpRows = 128;
constexpr int64_t kGateUpNeurons = 128;

// Blocks of the second: rows enough to earn the packing of the down rows, in slices of depth whose
// panels (128 KiB) stay in the L2 cache with the sums.
constexpr int64_t kDownRows = 256;
constexpr int64_t kDownColumns = 128;
constexpr int64_t kDownDepth = 512;

// Neurons whose gate or up rows are decoded at a time, if they are not bf16 as they lie.
constexpr int64_t kDecodeNeurons = 32;

constexpr int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Neurons, as the depth of the second product.
int64_t PaddedIntermediate(const ExpertFormat& format) {
  return RoundUp(format.intermediate(), 32);
}

// Values [column, column + columns) of one part of some neurons.
struct NeuronRows {
  const BFloat16* first;
  int64_t stride;
};

// In the blob where it is bf16, else decoded into `scratch` [count, columns].
NeuronRows RowsOf(const ExpertFormat& format, const std::byte* blob, ExpertPart part, int64_t first,
                  int64_t count, int64_t column, int64_t columns, BFloat16* scratch) {
  if (format.kind() == ExpertFormatKind::kBF12) {
    DecodeBf12(format, blob, part, first, count, column, columns, scratch, columns);
    return {scratch, columns};
  }
  const int64_t width = format.row_values();
  const auto* neuron = reinterpret_cast<const BFloat16*>(blob + format.neuron_offset(first));
  return {neuron + static_cast<int64_t>(part) * width + column, 3 * width};
}

}  // namespace

ManyRowsExperts::ManyRowsExperts(ThreadPool& pool, const ExpertKernels& kernels)
    : pool_(pool), kernels_(kernels), products_(pool.num_threads()), values_(pool.num_threads()) {}

void ManyRowsExperts::Run(const ExpertsCall& call, std::span<const ExpertWork> items) {
  const int64_t row_bytes =
      (call.format.row_values() + PaddedIntermediate(call.format)) * sizeof(BFloat16);
  const int64_t wave_panels =
      std::max(kMaxWaveBytes / (row_bytes * kPanelColumns), kDownRows / kPanelColumns);
  int64_t panels = 0;
  for (const ExpertWork& item : items) {
    for (std::span<const int32_t> rows = item.rows; !rows.empty();) {
      const auto count = std::min<size_t>(rows.size(), (wave_panels - panels) * kPanelColumns);
      segments_.push_back({.blob = item.blob, .rows = rows.first(count), .first_panel = panels});
      panels += NumPanels(count);
      rows = rows.subspan(count);
      if (panels == wave_panels) {
        RunWave(call);
        panels = 0;
      }
    }
  }
  if (panels > 0) RunWave(call);
}

// Cuts every segment into blocks of rows by neurons or columns, in blocks_.
void ManyRowsExperts::CutBlocks(int64_t block_rows, int64_t extent, int64_t block_extent) {
  blocks_.clear();
  for (const Segment& segment : segments_) {
    const auto num_rows = static_cast<int64_t>(segment.rows.size());
    for (int64_t row = 0; row < num_rows; row += block_rows) {
      for (int64_t begin = 0; begin < extent; begin += block_extent) {
        blocks_.push_back({.segment = &segment,
                           .row = row,
                           .rows = std::min(block_rows, num_rows - row),
                           .begin = begin,
                           .count = std::min(block_extent, extent - begin)});
      }
    }
  }
}

void ManyRowsExperts::RunWave(const ExpertsCall& call) {
  const int64_t width = call.format.row_values();
  const Segment& last = segments_.back();
  const int64_t num_panels = last.first_panel + NumPanels(last.rows.size());
  panels_.Reserve(num_panels * kPanelColumns * width);
  activations_.Reserve(num_panels * kPanelColumns * PaddedIntermediate(call.format));

  CutBlocks(kPanelColumns, 1, 1);
  pool_.ParallelFor(blocks_.size(), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) Pack(call, blocks_[i]);
  });
  CutBlocks(kGateUpRows, call.format.intermediate(), kGateUpNeurons);
  pool_.ParallelFor(blocks_.size(), 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) GateUp(call, blocks_[i], worker);
  });
  CutBlocks(kDownRows, width, kDownColumns);
  pool_.ParallelFor(blocks_.size(), 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) Down(call, blocks_[i], worker);
  });
  segments_.clear();
}

void ManyRowsExperts::Pack(const ExpertsCall& call, const Block& block) {
  const BFloat16* columns[kPanelColumns];
  for (int64_t r = 0; r < block.rows; ++r) {
    columns[r] = call.XRow(block.segment->rows[block.row + r]);
  }
  const int64_t width = call.format.row_values();
  const int64_t panel = block.segment->first_panel + block.row / kPanelColumns;
  PackColumns(std::span(columns, block.rows), width, width,
              panels_.get() + panel * kPanelColumns * width);
}

// sums [block.count, columns] = gate or up rows of the block's neurons times the rows' panels.
void ManyRowsExperts::MultiplyPart(const ExpertsCall& call, const Block& block, ExpertPart part,
                                   BFloat16* scratch, float* sums) {
  const int64_t width = call.format.row_values();
  const int64_t first_panel = block.segment->first_panel + block.row / kPanelColumns;
  const int64_t num_panels = NumPanels(block.rows);
  const int64_t columns = num_panels * kPanelColumns;
  const int64_t step = call.format.kind() == ExpertFormatKind::kBF12 ? kDecodeNeurons : block.count;
  for (int64_t n = 0; n < block.count; n += step) {
    const int64_t count = std::min(step, block.count - n);
    const NeuronRows rows =
        RowsOf(call.format, block.segment->blob, part, block.begin + n, count, 0, width, scratch);
    kernels_.multiply({.a = rows.first,
                       .a_stride = rows.stride,
                       .rows = count,
                       .depth = width,
                       .panels = panels_.get() + first_panel * kPanelColumns * width,
                       .panel_stride = kPanelColumns * width,
                       .num_panels = num_panels,
                       .c = sums + n * columns,
                       .c_stride = columns});
  }
}

// Activations of a block's rows for its neurons.
void ManyRowsExperts::GateUp(const ExpertsCall& call, const Block& block, int worker) {
  const int64_t padded_neurons = PaddedIntermediate(call.format);
  const int64_t columns = NumPanels(block.rows) * kPanelColumns;
  const int64_t size = block.count * columns;
  float* const gate = products_[worker].Reserve(2 * size);
  float* const up = gate + size;
  BFloat16* const act = values_[worker].Reserve(size + kDecodeNeurons * call.format.row_values());
  BFloat16* const scratch = act + size;
  MultiplyPart(call, block, ExpertPart::kGate, scratch, gate);
  MultiplyPart(call, block, ExpertPart::kUp, scratch, up);
  ActivateSwiGlu(gate, up, size, act);

  const int64_t first_row = block.segment->first_panel * kPanelColumns + block.row;
  BFloat16* const target = activations_.get() + first_row * padded_neurons + block.begin;
  TransposeValues(act, columns, block.count, block.rows, target, padded_neurons,
                  StoreKind::kCached);
  if (block.begin + block.count == call.format.intermediate()) {
    const int64_t padding = padded_neurons - call.format.intermediate();
    for (int64_t r = 0; r < block.rows; ++r) {
      std::fill_n(target + r * padded_neurons + block.count, padding, BFloat16{0});
    }
  }
}

// A block's rows of the output, in its columns.
void ManyRowsExperts::Down(const ExpertsCall& call, const Block& block, int worker) {
  const int64_t padded_neurons = PaddedIntermediate(call.format);
  const int64_t first_row = block.segment->first_panel * kPanelColumns + block.row;
  constexpr int64_t kSliceValues = kDownDepth * kDownColumns;
  BFloat16* const panels = values_[worker].Reserve(2 * kSliceValues);
  BFloat16* const scratch = panels + kSliceValues;
  float* const sums = products_[worker].Reserve(block.rows * block.count);
  const BFloat16* down[kDownDepth];
  for (int64_t k = 0; k < padded_neurons; k += kDownDepth) {
    const int64_t depth = std::min(kDownDepth, padded_neurons - k);
    const int64_t count = std::min(depth, call.format.intermediate() - k);
    const NeuronRows rows = RowsOf(call.format, block.segment->blob, ExpertPart::kDown, k, count,
                                   block.begin, block.count, scratch);
    for (int64_t i = 0; i < count; ++i) down[i] = rows.first + i * rows.stride;
    PackRows(std::span(down, count), block.count, depth, panels);
    kernels_.multiply({.a = activations_.get() + first_row * padded_neurons + k,
                       .a_stride = padded_neurons,
                       .rows = block.rows,
                       .depth = depth,
                       .panels = panels,
                       .panel_stride = depth * kPanelColumns,
                       .num_panels = NumPanels(block.count),
                       .c = sums,
                       .c_stride = block.count,
                       .accumulate = k > 0});
  }
  const int64_t columns = std::min(block.count, call.format.hidden() - block.begin);
  for (int64_t r = 0; r < block.rows; ++r) {
    std::copy_n(sums + r * block.count, columns,
                call.OutRow(block.segment->rows[block.row + r]) + block.begin);
  }
}

}  // namespace moed::backend
