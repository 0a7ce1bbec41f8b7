// The layout of the right-hand side of a product on the CPU, one for every instruction set. A
// matrix B [depth, columns] of bf16 lies in panels of 16 columns; a panel holds, for each pair of
// depths (2i, 2i + 1), the 16 columns' values two by two:
//   [panel][depth / 2][16 columns][2]
// A pair is 64 bytes: one AVX-512 or two AVX2 loads, whose 32-bit lanes are what AVX512-BF16
// multiplies and whose halves become float32 by a shift or a mask; 16 pairs are one AMX tile.
// Pure functions; any thread.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/backend/dtype.h"

namespace moed::backend {

constexpr int64_t kPanelColumns = 16;

constexpr int64_t NumPanels(int64_t columns) {
  return (columns + kPanelColumns - 1) / kPanelColumns;
}

// Packs one panel of up to 16 columns whose values lie one after the other, as the rows of a weight
// W [out, in] or the keys of attention do: column n is `depth` values at columns[n]. What is beyond
// depth, up to the even padded_depth, and beyond the last column becomes zero.
void PackColumns(std::span<const BFloat16* const> columns, int64_t depth, int64_t padded_depth,
                 BFloat16* panel);

// Packs all panels of rows of B, as the values of attention lie: depth k is `columns` values at
// rows[k]. Depths beyond the last row, up to the even padded_depth, and columns up to the next
// multiple of 16 become zero. panels: [NumPanels(columns)][padded_depth / 2][16][2].
void PackRows(std::span<const BFloat16* const> rows, int64_t columns, int64_t padded_depth,
              BFloat16* panels);

}  // namespace moed::backend
