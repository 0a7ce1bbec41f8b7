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

// Which of the two depths that a 32-bit word holds.
enum class Half : uint8_t { kFirst, kSecond };

// sums += column of A (kRows values) times one depth of a panel's 16 columns.
template <Half kHalf, int kRows>
HWY_INLINE void AddOuterProduct(const float* HWY_RESTRICT column, const BFloat16* HWY_RESTRICT pair,
                                FloatVector (&sums)[kRows][kVectorsPerPanel]) {
  const Floats d;
  const Words dw;
  FloatVector weights[kVectorsPerPanel];
#pragma GCC unroll 16
  for (int v = 0; v < kVectorsPerPanel; ++v) {
    const auto both = hn::LoadU(dw, reinterpret_cast<const uint32_t*>(pair) + v * kLanes);
    weights[v] = hn::BitCast(d, kHalf == Half::kFirst ? hn::ShiftLeft<16>(both)
                                                      : hn::And(both, hn::Set(dw, 0xffff0000u)));
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const FloatVector value = hn::Set(d, column[r]);
#pragma GCC unroll 16
    for (int v = 0; v < kVectorsPerPanel; ++v) {
      sums[r][v] = hn::MulAdd(value, weights[v], sums[r][v]);
    }
  }
}

// C += A B for kRows rows and kPanels panels over `pairs` pairs of depths. a: [depth][kRows].
template <int kRows, int kPanels>
HWY_INLINE void MultiplyTile(const float* HWY_RESTRICT a, const BFloat16* HWY_RESTRICT panels,
                             int64_t panel_stride, int64_t pairs, float* HWY_RESTRICT c,
                             int64_t c_stride) {
  FloatVector sums[kPanels][kRows][kVectorsPerPanel];
  // Visits each sum and its place in C.
  const auto for_each_sum = [&](const auto& visit) HWY_ATTR {
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < kVectorsPerPanel; ++v) {
          visit(sums[p][r][v], c + r * c_stride + p * kPanelColumns + v * kLanes);
        }
      }
    }
  };
  for_each_sum([](FloatVector& sum, const float* at) HWY_ATTR { sum = hn::LoadU(Floats(), at); });
  for (int64_t i = 0; i < pairs; ++i) {
    const BFloat16* pair = panels + i * kPanelColumns * 2;
    // A word is loaded twice: to keep it for its second half costs registers that sums need.
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) {
      // With many panels at once the CPU's own prefetching is at its best.
      if constexpr (kPanels <= 2) __builtin_prefetch(pair + p * panel_stride + kPrefetchElements);
      AddOuterProduct<Half::kFirst>(a + 2 * i * kRows, pair + p * panel_stride, sums[p]);
    }
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) {
      AddOuterProduct<Half::kSecond>(a + (2 * i + 1) * kRows, pair + p * panel_stride, sums[p]);
    }
  }
  for_each_sum([](FloatVector& sum, float* at) HWY_ATTR { hn::StoreU(sum, Floats(), at); });
}

// What AccumulatePanels hands on: some tiles of one height.
struct Tiles {
  int64_t first_row = 0;
  int64_t count = 0;
  int64_t depth_begin = 0;
  int64_t depth_end = 0;
};

// kPanels panels from `panel` on: they stay in the first-level cache while the tiles pass.
template <int kRows, int kPanels>
HWY_INLINE void MultiplyPanels(const PanelProduct& p, int64_t panel, const Tiles& tiles) {
  const BFloat16* panels = p.panels + panel * p.panel_stride + tiles.depth_begin * kPanelColumns;
  for (int64_t tile = 0; tile < tiles.count; ++tile) {
    const int64_t row = tiles.first_row + tile * kRows;
    MultiplyTile<kRows, kPanels>(p.a + row * p.depth + tiles.depth_begin * kRows, panels,
                                 p.panel_stride, (tiles.depth_end - tiles.depth_begin) / 2,
                                 p.c + row * p.c_stride + panel * kPanelColumns, p.c_stride);
  }
}

// All panels times tiles of kRows rows.
template <int kRows>
HWY_INLINE void MultiplyTiles(const PanelProduct& p, const Tiles& tiles) {
  constexpr int kPanels = PanelsAtOnce(kRows);
  int64_t panel = 0;
  for (; panel + kPanels <= p.num_panels; panel += kPanels) {
    MultiplyPanels<kRows, kPanels>(p, panel, tiles);
  }
  for (; panel < p.num_panels; ++panel) MultiplyPanels<kRows, 1>(p, panel, tiles);
}

void AccumulatePanels(const PanelProduct& p, int64_t depth_begin, int64_t depth_end) {
  const Tiles whole = {0, p.rows / kTileRows, depth_begin, depth_end};
  const Tiles last = {whole.count * kTileRows, 1, depth_begin, depth_end};
  MultiplyTiles<kTileRows>(p, whole);
  switch (p.rows % kTileRows) {
    case 1:
      return MultiplyTiles<1>(p, last);
    case 2:
      return MultiplyTiles<2>(p, last);
    case 3:
      return MultiplyTiles<3>(p, last);
    case 4:
      return MultiplyTiles<4>(p, last);
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
