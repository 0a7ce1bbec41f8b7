#include "runtime/backend/cpu/panel_product.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/backend/cpu/panel_product.cc"
#include "hwy/foreach_target.h"
// Highway's own headers come after foreach_target.h.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace moed::backend {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::CappedTag<float, kPanelColumns>;
using Words = hn::RebindToUnsigned<Floats>;
using FloatVector = hn::Vec<Floats>;

constexpr int kLanes = static_cast<int>(hn::MaxLanes(Floats()));
constexpr int kVectorsPerPanel = static_cast<int>(kPanelColumns) / kLanes;
// Sums that fit the registers beside the weights, the mask and a row's value; one row more makes
// GCC spill some.
constexpr int kAccumulators = kLanes == 16 ? 20 : 10;

// 4 KiB ahead: with a few rows a panel takes about as long as memory's latency to get there.
constexpr int64_t kPrefetchElements = 2048;

// Panels that a tile of `rows` rows takes at once: enough independent sums to hide the latency of
// a multiply-add when rows are few.
constexpr int PanelsAtOnce(int rows) {
  const int fit = kAccumulators / (rows * kVectorsPerPanel);
  return fit >= 4 ? 4 : fit >= 2 ? 2 : 1;
}

// Vector v of kPanels panels side by side, as 32-bit lanes of two depths each.
HWY_INLINE const uint32_t* WordsAt(const BFloat16* pair, int64_t panel_stride, int v) {
  return reinterpret_cast<const uint32_t*>(pair + v / kVectorsPerPanel * panel_stride +
                                           v % kVectorsPerPanel * kLanes * 2);
}

// C += A B for kRows rows and kPanels panels over `pairs` pairs of depths. a: [depth][kRows].
template <int kRows, int kPanels>
HWY_INLINE void MultiplyTile(const float* HWY_RESTRICT a, const BFloat16* HWY_RESTRICT panels,
                             int64_t panel_stride, int64_t pairs, float* HWY_RESTRICT c,
                             int64_t c_stride) {
  constexpr int kVectors = kPanels * kVectorsPerPanel;
  const Floats d;
  const Words dw;
  const auto upper_half = hn::Set(dw, 0xffff0000u);
  FloatVector sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) sums[r][v] = hn::LoadU(d, c + r * c_stride + v * kLanes);
  }
  for (int64_t i = 0; i < pairs; ++i) {
    const BFloat16* pair = panels + i * kPanelColumns * 2;
    // With many panels at once the CPU's own prefetching is at its best.
    if constexpr (kPanels <= 2) {
      for (int p = 0; p < kPanels; ++p) {
        __builtin_prefetch(pair + p * panel_stride + kPrefetchElements);
      }
    }
    FloatVector weights[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const auto both = hn::LoadU(dw, WordsAt(pair, panel_stride, v));
      weights[v] = hn::BitCast(d, hn::ShiftLeft<16>(both));
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const FloatVector value = hn::Set(d, a[2 * i * kRows + r]);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) sums[r][v] = hn::MulAdd(value, weights[v], sums[r][v]);
    }
    // Loaded again: keeping the words over the first half would cost registers that sums need.
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const auto both = hn::LoadU(dw, WordsAt(pair, panel_stride, v));
      weights[v] = hn::BitCast(d, hn::And(both, upper_half));
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const FloatVector value = hn::Set(d, a[(2 * i + 1) * kRows + r]);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) sums[r][v] = hn::MulAdd(value, weights[v], sums[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) hn::StoreU(sums[r][v], d, c + r * c_stride + v * kLanes);
  }
}

// All panels times all tiles of kRows rows from row `row_begin` on.
template <int kRows>
HWY_INLINE void MultiplyTiles(const PanelProduct& p, int64_t row_begin, int64_t num_tiles,
                              int64_t depth_begin, int64_t depth_end) {
  constexpr int kPanels = PanelsAtOnce(kRows);
  const int64_t pairs = (depth_end - depth_begin) / 2;
  int64_t panel = 0;
  for (; panel + kPanels <= p.num_panels; panel += kPanels) {
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      const int64_t row = row_begin + tile * kRows;
      MultiplyTile<kRows, kPanels>(p.a + row * p.depth + depth_begin * kRows,
                                   p.panels + panel * p.panel_stride + depth_begin * kPanelColumns,
                                   p.panel_stride, pairs,
                                   p.c + row * p.c_stride + panel * kPanelColumns, p.c_stride);
    }
  }
  for (; panel < p.num_panels; ++panel) {
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      const int64_t row = row_begin + tile * kRows;
      MultiplyTile<kRows, 1>(p.a + row * p.depth + depth_begin * kRows,
                             p.panels + panel * p.panel_stride + depth_begin * kPanelColumns,
                             p.panel_stride, pairs, p.c + row * p.c_stride + panel * kPanelColumns,
                             p.c_stride);
    }
  }
}

void AccumulatePanels(const PanelProduct& p, int64_t depth_begin, int64_t depth_end) {
  const int64_t full_tiles = p.rows / kTileRows;
  const int64_t row = full_tiles * kTileRows;
  if (full_tiles > 0) MultiplyTiles<kTileRows>(p, 0, full_tiles, depth_begin, depth_end);
  switch (p.rows % kTileRows) {
    case 1:
      return MultiplyTiles<1>(p, row, 1, depth_begin, depth_end);
    case 2:
      return MultiplyTiles<2>(p, row, 1, depth_begin, depth_end);
    case 3:
      return MultiplyTiles<3>(p, row, 1, depth_begin, depth_end);
    case 4:
      return MultiplyTiles<4>(p, row, 1, depth_begin, depth_end);
    default:
      return;
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace moed::backend
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moed::backend {

HWY_EXPORT(AccumulatePanels);

void AccumulatePanels(const PanelProduct& product, int64_t depth_begin, int64_t depth_end) {
  HWY_DYNAMIC_DISPATCH(AccumulatePanels)(product, depth_begin, depth_end);
}

}  // namespace moed::backend
#endif
