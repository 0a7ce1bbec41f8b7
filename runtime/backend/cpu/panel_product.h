// The product that dense layers and attention are made of: C += A B with A float32, B bf16 in
// panels (panel.h) and C float32, in the widest vectors of this CPU. One element of C is one chain
// of multiply-adds over the depth in rising order, so its bits depend neither on how many rows or
// panels a call has nor on how the depth is cut into calls. Any thread.
#pragma once

#include <cstdint>

#include "runtime/backend/cpu/panel.h"

namespace moed::backend {

// Rows of A lie in tiles of 5, the last one shorter: [tile][depth][rows of the tile].
constexpr int64_t kTileRows = 5;

// Where row `row` of an A with `rows` rows starts, and how far its next depth is.
struct PackedRow {
  int64_t offset;
  int64_t depth_stride;
};
constexpr PackedRow PackedRowAt(int64_t row, int64_t rows, int64_t depth) {
  const int64_t tile_begin = row - row % kTileRows;
  const int64_t tile_rows = rows - tile_begin < kTileRows ? rows - tile_begin : kTileRows;
  return {tile_begin * depth + row % kTileRows, tile_rows};
}

struct PanelProduct {
  const float* a = nullptr;  // `rows` rows of `depth`, in tiles
  int64_t rows = 0;
  int64_t depth = 0;
  const BFloat16* panels = nullptr;
  int64_t panel_stride = 0;  // elements from panel to panel
  int64_t num_panels = 0;
  float* c = nullptr;  // [rows, num_panels * 16], c_stride floats from row to row
  int64_t c_stride = 0;
};

// C += A B over depths [depth_begin, depth_end), both even.
void AccumulatePanels(const PanelProduct& product, int64_t depth_begin, int64_t depth_end);

}  // namespace moed::backend
