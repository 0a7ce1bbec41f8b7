#include <algorithm>

#include "runtime/backend/cpu/experts_portable.h"
#include "runtime/backend/cpu/panel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/backend/cpu/experts_multiply_portable.cc"
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
using Halves = hn::Repartition<uint16_t, Floats>;
using FloatVector = hn::Vec<Floats>;

constexpr int kLanes = static_cast<int>(hn::MaxLanes(Floats()));
constexpr int kVectors = static_cast<int>(kPanelColumns) / kLanes;
// Rows whose sums fit the registers beside a panel's weights, a mask and a broadcast value.
constexpr int kTileRows = kLanes == 16 ? 20 : 10 / kVectors;
// Depth of A widened at a time: a tile's rows stay in the L1 cache while the panels pass.
constexpr int64_t kDepthBlock = 256;

// Rows [first, first + rows) of A over a block of depth, as floats [kTileRows][kDepthBlock]; rows
// beyond are zero.
HWY_INLINE void WidenRows(const PanelMultiply& p, int64_t first, int64_t rows, int64_t depth,
                          int64_t depth_begin, float* HWY_RESTRICT a) {
  const Floats d;
  const Words dw;
  const hn::Rebind<uint16_t, Floats> dh;
  std::fill_n(a + rows * kDepthBlock, (kTileRows - rows) * kDepthBlock, 0.0f);
  for (int64_t r = 0; r < rows; ++r) {
    const BFloat16* row = p.a + (first + r) * p.a_stride + depth_begin;
    for (int64_t k = 0; k < depth; k += kLanes) {
      const auto bits = hn::ShiftLeft<16>(hn::PromoteTo(dw, hn::LoadU(dh, row + k)));
      hn::Store(hn::BitCast(d, bits), d, a + r * kDepthBlock + k);
    }
  }
}

// c [kTileRows, 16] += a times `pairs` pairs of depth of a panel, of which depth is kept two by two
// in 32-bit words.
HWY_INLINE void MultiplyTile(const float* HWY_RESTRICT a, const BFloat16* HWY_RESTRICT panel,
                             int64_t pairs, float* HWY_RESTRICT c, int64_t c_stride) {
  const Floats d;
  const Words dw;
  const auto upper_half = hn::Set(dw, 0xffff0000u);
  FloatVector sums[kTileRows][kVectors];
#pragma GCC unroll 20
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[r][v] = hn::LoadU(d, c + r * c_stride + v * kLanes);
  }
  const auto add = [&](const FloatVector* weights, const float* column) HWY_ATTR {
#pragma GCC unroll 20
    for (int r = 0; r < kTileRows; ++r) {
      const auto value = hn::Set(d, column[r * kDepthBlock]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] = hn::MulAdd(value, weights[v], sums[r][v]);
    }
  };
  const auto load = [&](int64_t pair, int v) HWY_ATTR {
    return hn::BitCast(dw, hn::LoadU(Halves(), panel + (pair * kPanelColumns + v * kLanes) * 2));
  };
  for (int64_t i = 0; i < pairs; ++i) {
    // One half at a time, loaded twice: both at once are more than the registers hold.
    FloatVector weights[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      weights[v] = hn::BitCast(d, hn::ShiftLeft<16>(load(i, v)));
    }
    add(weights, a + 2 * i);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) weights[v] = hn::BitCast(d, hn::And(load(i, v), upper_half));
    add(weights, a + 2 * i + 1);
  }
#pragma GCC unroll 20
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) hn::StoreU(sums[r][v], d, c + r * c_stride + v * kLanes);
  }
}

// The same for the last, shorter tile, through a whole one.
HWY_INLINE void MultiplyLastTile(const float* a, const BFloat16* panel, int64_t pairs, int64_t rows,
                                 float* c, int64_t c_stride) {
  HWY_ALIGN float tile[kTileRows * kPanelColumns] = {};
  for (int64_t r = 0; r < rows; ++r) {
    std::copy_n(c + r * c_stride, kPanelColumns, tile + r * kPanelColumns);
  }
  MultiplyTile(a, panel, pairs, tile, kPanelColumns);
  for (int64_t r = 0; r < rows; ++r) {
    std::copy_n(tile + r * kPanelColumns, kPanelColumns, c + r * c_stride);
  }
}

void Multiply(const PanelMultiply& p) {
  HWY_ALIGN float a[kTileRows * kDepthBlock];
  if (!p.accumulate) {
    for (int64_t r = 0; r < p.rows; ++r) {
      std::fill_n(p.c + r * p.c_stride, p.num_panels * kPanelColumns, 0.0f);
    }
  }
  for (int64_t k = 0; k < p.depth; k += kDepthBlock) {
    const int64_t depth = std::min(kDepthBlock, p.depth - k);
    for (int64_t r = 0; r < p.rows; r += kTileRows) {
      const int64_t rows = std::min<int64_t>(kTileRows, p.rows - r);
      WidenRows(p, r, rows, depth, k, a);
      for (int64_t n = 0; n < p.num_panels; ++n) {
        const BFloat16* panel = p.panels + n * p.panel_stride + k * kPanelColumns;
        float* c = p.c + r * p.c_stride + n * kPanelColumns;
        if (rows == kTileRows) {
          MultiplyTile(a, panel, depth / 2, c, p.c_stride);
        } else {
          MultiplyLastTile(a, panel, depth / 2, rows, c, p.c_stride);
        }
      }
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace moed::backend
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moed::backend {

HWY_EXPORT(Multiply);

void MultiplyPortable(const PanelMultiply& product) { HWY_DYNAMIC_DISPATCH(Multiply)(product); }

}  // namespace moed::backend
#endif
