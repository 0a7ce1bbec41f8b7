#include "runtime/backend/cpu/experts_amx.h"

#if defined(__x86_64__)

#include <algorithm>

#include "runtime/backend/cpu/amx_tiles.h"
#include "runtime/backend/cpu/panel.h"

// Compiled for its own target; the rest of the program runs where these instructions do not exist.
#define MOED_AMX_BF16 __attribute__((target("amx-tile,amx-bf16")))

namespace moed::backend {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileDepth = 32;
// Depth of a product taken at once: its tiles of B stay in the L2 cache while the rows pass.
constexpr int64_t kDepthBlock = 1024;

// The intrinsics want tile registers as literals: 0 to 3 are sums ([rows][panels], two by two), 4
// and 5 two tiles of A, 6 and 7 two of B.
constexpr int kFirstTileOfB = 6;

// Tiles of A and C have `rows` rows, those of B 16.
MOED_AMX_BF16 void Configure(int64_t rows) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.Set(tile, tile < kFirstTileOfB ? rows : kTileRows, 64);
  }
  config.Load();
}

// Where one tile of C, and those of A and B that it needs, begin.
struct Place {
  const BFloat16* a;
  const BFloat16* b;
  float* c;
};

Place PlaceOf(const PanelMultiply& p, int64_t row, int64_t panel) {
  return {p.a + row * p.a_stride, p.panels + panel * p.panel_stride,
          p.c + row * p.c_stride + panel * kPanelColumns};
}

// C of 32 rows and two panels over depth [begin, end).
MOED_AMX_BF16 void MultiplyFour(const PanelMultiply& p, int64_t row, int64_t panel, int64_t begin,
                                int64_t end) {
  const Place at = PlaceOf(p, row, panel);
  const int64_t a_bytes = p.a_stride * sizeof(BFloat16);
  const int64_t c_bytes = p.c_stride * sizeof(float);
  float* const lower = at.c + kTileRows * p.c_stride;
  if (p.accumulate || begin > 0) {
    _tile_loadd(0, at.c, c_bytes);
    _tile_loadd(1, at.c + kPanelColumns, c_bytes);
    _tile_loadd(2, lower, c_bytes);
    _tile_loadd(3, lower + kPanelColumns, c_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = begin; k < end; k += kTileDepth) {
    _tile_loadd(4, at.a + k, a_bytes);
    _tile_loadd(6, at.b + k * kPanelColumns, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, at.b + p.panel_stride + k * kPanelColumns, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, at.a + kTileRows * p.a_stride + k, a_bytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, at.c, c_bytes);
  _tile_stored(1, at.c + kPanelColumns, c_bytes);
  _tile_stored(2, lower, c_bytes);
  _tile_stored(3, lower + kPanelColumns, c_bytes);
}

// C of one tile: as many rows as are configured, one panel.
MOED_AMX_BF16 void MultiplyOne(const PanelMultiply& p, int64_t row, int64_t panel, int64_t begin,
                               int64_t end) {
  const Place at = PlaceOf(p, row, panel);
  const int64_t a_bytes = p.a_stride * sizeof(BFloat16);
  const int64_t c_bytes = p.c_stride * sizeof(float);
  if (p.accumulate || begin > 0) {
    _tile_loadd(0, at.c, c_bytes);
  } else {
    _tile_zero(0);
  }
  for (int64_t k = begin; k < end; k += kTileDepth) {
    _tile_loadd(4, at.a + k, a_bytes);
    _tile_loadd(6, at.b + k * kPanelColumns, 64);
    _tile_dpbf16ps(0, 4, 6);
  }
  _tile_stored(0, at.c, c_bytes);
}

// All tiles of 16 rows over depth [begin, end), four at a time where there are as many.
MOED_AMX_BF16 void MultiplyWholeTiles(const PanelMultiply& p, int64_t begin, int64_t end) {
  const int64_t rows = p.rows / kTileRows * kTileRows;
  const int64_t even_rows = p.rows / (2 * kTileRows) * (2 * kTileRows);
  const int64_t even_panels = p.num_panels / 2 * 2;
  for (int64_t r = 0; r < even_rows; r += 2 * kTileRows) {
    for (int64_t n = 0; n < even_panels; n += 2) MultiplyFour(p, r, n, begin, end);
  }
  for (int64_t r = 0; r < rows; r += kTileRows) {
    for (int64_t n = r < even_rows ? even_panels : 0; n < p.num_panels; ++n) {
      MultiplyOne(p, r, n, begin, end);
    }
  }
}

MOED_AMX_BF16 void Multiply(const PanelMultiply& p) {
  const int64_t whole = p.rows / kTileRows * kTileRows;
  Configure(kTileRows);
  for (int64_t k = 0; k < p.depth && whole > 0; k += kDepthBlock) {
    MultiplyWholeTiles(p, k, std::min(k + kDepthBlock, p.depth));
  }
  if (whole < p.rows) {
    Configure(p.rows - whole);
    for (int64_t n = 0; n < p.num_panels; ++n) MultiplyOne(p, whole, n, 0, p.depth);
  }
  _tile_release();
}

}  // namespace

void MultiplyAmx(const PanelMultiply& product) { Multiply(product); }

}  // namespace moed::backend

#else

namespace moed::backend {

// Never called: cpu_features.h reports no AMX here.
void MultiplyAmx(const PanelMultiply&) {}

}  // namespace moed::backend

#endif
