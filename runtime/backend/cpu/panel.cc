#include "runtime/backend/cpu/panel.h"

#include <algorithm>
#include <cstring>

namespace moed::backend {
namespace {

// 128-bit vectors, which every target of this code has.
using Words = uint32_t __attribute__((vector_size(16)));
using Halves = uint16_t __attribute__((vector_size(16)));

template <typename Vector>
Vector Load(const void* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof(vector));
  return vector;
}

template <typename Vector>
void Store(Vector vector, void* to) {
  std::memcpy(to, &vector, sizeof(vector));
}

// Four columns, four pairs of depths: a 4 x 4 transpose of 32-bit words.
void TransposeWords(const BFloat16* const* columns, int64_t depth, BFloat16* to) {
  const Words a = Load<Words>(columns[0] + depth);
  const Words b = Load<Words>(columns[1] + depth);
  const Words c = Load<Words>(columns[2] + depth);
  const Words d = Load<Words>(columns[3] + depth);
  const Words ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  const Words ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Words cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Words cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  constexpr int64_t kPairElements = 2 * kPanelColumns;
  Store(__builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5), to);
  Store(__builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7), to + kPairElements);
  Store(__builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5), to + 2 * kPairElements);
  Store(__builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7), to + 3 * kPairElements);
}

// Element (depth, column) of a panel.
BFloat16& At(BFloat16* panel, int64_t depth, int64_t column) {
  return panel[(depth / 2 * kPanelColumns + column) * 2 + depth % 2];
}

// 16 columns of two rows, value by value.
void InterleaveRows(const BFloat16* even, const BFloat16* odd, BFloat16* to) {
  for (int64_t i = 0; i < kPanelColumns; i += 8, to += 16) {
    const Halves a = Load<Halves>(even + i);
    const Halves b = Load<Halves>(odd + i);
    Store(__builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11), to);
    Store(__builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15), to + 8);
  }
}

}  // namespace

void PackColumns(std::span<const BFloat16* const> columns, int64_t depth, int64_t padded_depth,
                 BFloat16* panel) {
  const auto count = static_cast<int64_t>(columns.size());
  const int64_t blocked_columns = count / 4 * 4;
  const int64_t blocked_depth = depth / 8 * 8;
  if (count < kPanelColumns || blocked_depth < padded_depth) {
    std::fill_n(panel, padded_depth * kPanelColumns, BFloat16{0});
  }
  // Cache line by cache line: columns may lie a power of two apart, and then few lines of them fit
  // a cache at once.
  constexpr int64_t kLineElements = 64 / sizeof(BFloat16);
  for (int64_t line = 0; line < blocked_depth; line += kLineElements) {
    const int64_t line_end = std::min(blocked_depth, line + kLineElements);
    for (int64_t n = 0; n < blocked_columns; n += 4) {
      for (int64_t k = line; k < line_end; k += 8) {
        TransposeWords(columns.data() + n, k, panel + k * kPanelColumns + n * 2);
      }
    }
  }
  for (int64_t n = 0; n < count; ++n) {
    const int64_t done = n < blocked_columns ? blocked_depth : 0;
    for (int64_t k = done; k < depth; ++k) At(panel, k, n) = columns[n][k];
  }
}

void PackRows(std::span<const BFloat16* const> rows, int64_t columns, int64_t padded_depth,
              BFloat16* panels) {
  const auto depth = static_cast<int64_t>(rows.size());
  const int64_t panel_elements = padded_depth * kPanelColumns;
  const int64_t whole_panels = columns / kPanelColumns;
  if (depth < padded_depth || columns % kPanelColumns != 0) {
    std::fill_n(panels, NumPanels(columns) * panel_elements, BFloat16{0});
  }
  for (int64_t k = 0; k + 1 < depth; k += 2) {
    for (int64_t p = 0; p < whole_panels; ++p) {
      InterleaveRows(rows[k] + p * kPanelColumns, rows[k + 1] + p * kPanelColumns,
                     panels + p * panel_elements + k * kPanelColumns);
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    const bool interleaved = k + 1 < depth || k % 2 == 1;
    const int64_t done = interleaved ? whole_panels * kPanelColumns : 0;
    for (int64_t n = done; n < columns; ++n) {
      At(panels + n / kPanelColumns * panel_elements, k, n % kPanelColumns) = rows[k][n];
    }
  }
}

}  // namespace moed::backend
