#include "runtime/backend/expert_format.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "absl/base/internal/raw_logging.h"
#include "hwy/cache_control.h"
#include "runtime/backend/bf12.h"
#include "runtime/backend/cpu/bf12_blocks.h"
#include "runtime/backend/cpu/experts_layout.h"

namespace moed::backend {
namespace {

constexpr int64_t kRowMultiple = 32;       // values: 64 bytes
constexpr size_t kBlobMultiple = 256;      // bytes
constexpr size_t kBf12ListMultiple = 128;  // bytes

// Columns of the down matrix transposed together: a cache line of each of its rows.
constexpr int64_t kNeuronBlock = 32;
// Rows of the down matrix converted to bf16 at a time, if they are not bf16 already.
constexpr int64_t kConvertRows = 32;

constexpr int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Elements [offset, offset + count) of `source` as bf16.
void ConvertValues(const Tensor& source, int64_t offset, int64_t count, BFloat16* target) {
  switch (source.dtype()) {
    case DType::kBF16:
      CopyValues(source.As<BFloat16>() + offset, count, target);
      return;
    case DType::kF16:
      HalvesToBFloat16(source.As<uint16_t>() + offset, count, target);
      return;
    case DType::kF32:
      FloatsToBFloat16(source.As<float>() + offset, count, target);
      return;
    default:
      ABSL_RAW_LOG(FATAL, "expert weights must be bf16, f16 or f32");
  }
}

// Columns [first, first + count) of `down` [H, I] become rows of `target`, `stride` values apart.
void TransposeColumns(const Tensor& down, int64_t first, int64_t count, BFloat16* target,
                      int64_t stride) {
  const int64_t hidden = down.dim(0);
  const int64_t intermediate = down.dim(1);
  if (down.dtype() == DType::kBF16) {
    TransposeValues(down.As<BFloat16>() + first, intermediate, hidden, count, target, stride,
                    StoreKind::kStreamed);
    return;
  }
  std::array<BFloat16, kConvertRows * kNeuronBlock> converted;
  for (int64_t begin = 0; begin < hidden; begin += kConvertRows) {
    const int64_t rows = std::min(kConvertRows, hidden - begin);
    for (int64_t r = 0; r < rows; ++r) {
      ConvertValues(down, (begin + r) * intermediate + first, count,
                    converted.data() + r * kNeuronBlock);
    }
    TransposeValues(converted.data(), kNeuronBlock, rows, count, target + begin, stride,
                    StoreKind::kStreamed);
  }
}

}  // namespace

std::string_view ExpertFormatName(ExpertFormatKind kind) {
  switch (kind) {
    case ExpertFormatKind::kBF16:
      return "bf16";
    case ExpertFormatKind::kBF12:
      return "bf12";
  }
  return "?";
}

ExpertFormat::ExpertFormat(ExpertFormatKind kind, int64_t hidden, int64_t intermediate,
                           int tile_escapes)
    : kind_(kind), hidden_(hidden), intermediate_(intermediate), tile_escapes_(tile_escapes) {
  if (kind == ExpertFormatKind::kBF16) {
    row_values_ = RoundUp(hidden, kRowMultiple);
    neuron_bytes_ = 3 * row_values_ * sizeof(BFloat16);
    tile_bytes_ = tile_list_offset();
  } else {
    const size_t list_bytes = (1 + tile_escapes) * sizeof(Bf12TileEscape);
    row_values_ = RoundUp(hidden, kBf12BlockValues);
    neuron_bytes_ = sizeof(Bf12Header) + 3 * row_values_ / kBf12BlockValues * kBf12BlockBytes;
    tile_bytes_ = tile_list_offset() + RoundUp(list_bytes, kBf12ListMultiple);
  }
}

size_t ExpertFormat::blob_bytes() const {
  const bool tiled = kind_ == ExpertFormatKind::kBF12;
  const int64_t neurons = tiled ? RoundUp(intermediate_, kBf12TileNeurons) : intermediate_;
  return RoundUp(neuron_offset(neurons), kBlobMultiple);
}

double ExpertFormat::stored_ratio() const {
  const ExpertFormat plain(ExpertFormatKind::kBF16, hidden_, intermediate_);
  return static_cast<double>(blob_bytes()) / static_cast<double>(plain.blob_bytes());
}

void ExpertFormat::Encode(const Tensor& gate, const Tensor& up, const Tensor& down,
                          std::span<std::byte> blob) const {
  EncodeRows(ExpertPart::kGate, 0, gate, blob);
  EncodeRows(ExpertPart::kUp, 0, up, blob);
  EncodeRows(ExpertPart::kDown, 0, down, blob);
}

void ExpertFormat::EncodeRows(ExpertPart part, int64_t first_row, const Tensor& rows,
                              std::span<std::byte> blob) const {
  const int64_t row = row_values();
  const int64_t neuron = 3 * row;
  const int64_t count = rows.dim(0);
  const bool is_down = part == ExpertPart::kDown;
  BFloat16* const values =
      reinterpret_cast<BFloat16*>(blob.data()) + static_cast<int64_t>(part) * row;
  if (is_down) {
    for (int64_t begin = 0; begin < intermediate_; begin += kNeuronBlock) {
      const int64_t columns = std::min(kNeuronBlock, intermediate_ - begin);
      TransposeColumns(rows, begin, columns, values + begin * neuron + first_row, neuron);
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      ConvertValues(rows, i * hidden_, hidden_, values + (first_row + i) * neuron);
    }
  }
  const int64_t padded_begin = is_down ? 0 : first_row;
  const int64_t padded_end = is_down ? intermediate_ : first_row + count;
  for (int64_t i = padded_begin; i < padded_end; ++i) {
    std::fill(values + i * neuron + hidden_, values + i * neuron + row, BFloat16{0});
  }
  std::memset(blob.data() + intermediate_ * neuron_bytes(), 0,
              blob_bytes() - intermediate_ * neuron_bytes());
  hwy::FlushStream();  // streamed lines become visible before whatever announces the blob
}

}  // namespace moed::backend
