#include "runtime/backend/cpu/bf12_window.h"

#include <algorithm>
#include <array>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/backend/cpu/bf12_window.cc"
#include "hwy/foreach_target.h"
// Highway's own headers come after foreach_target.h.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace moed::backend {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using Tag = hn::CappedTag<uint16_t, kBf12PlacesBeyond>;
using Vector = hn::Vec<Tag>;

// Bits without the sign rise with the exponent, which stands above 7 bits of mantissa.
constexpr int kMantissaBits = 7;
constexpr uint16_t kNoSign = 0x7fff;

constexpr uint16_t Least(int exponent) { return static_cast<uint16_t>(exponent << kMantissaBits); }

HWY_INLINE Vector Magnitudes(const BFloat16* values) {
  const Tag d;
  return hn::And(hn::LoadU(d, values), hn::Set(d, kNoSign));
}

int LargestExponent(const BFloat16* values, int64_t count) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  Vector most = hn::Zero(d);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) most = hn::Max(most, Magnitudes(values + i));
  int largest = hn::GetLane(hn::MaxOfLanes(d, most));
  for (; i < count; ++i) largest = std::max(largest, values[i] & kNoSign);
  return largest >> kMantissaBits;
}

// A row beside the window from `base` to `top`.
struct Window {
  int64_t below_base = 0;
  int64_t below_top = 0;
  int lowest = 0;  // exponent from the base on
};

Window Examine(const BFloat16* values, int64_t count, int base, int top) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const Vector first = hn::Set(d, Least(base));
  const Vector last = hn::Set(d, Least(top));
  Vector least = hn::Set(d, kNoSign);
  Window window;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const Vector magnitudes = Magnitudes(values + i);
    const auto below = hn::Lt(magnitudes, first);
    window.below_base += static_cast<int64_t>(hn::CountTrue(d, below));
    window.below_top += static_cast<int64_t>(hn::CountTrue(d, hn::Lt(magnitudes, last)));
    least = hn::Min(least, hn::IfThenElse(below, least, magnitudes));
  }
  int lowest = hn::GetLane(hn::MinOfLanes(d, least));
  for (; i < count; ++i) {
    const int magnitude = values[i] & kNoSign;
    const bool below = magnitude < Least(base);
    window.below_base += below ? 1 : 0;
    window.below_top += magnitude < Least(top) ? 1 : 0;
    if (!below) lowest = std::min(lowest, magnitude);
  }
  window.lowest = lowest >> kMantissaBits;
  return window;
}

// The base, or -1 if it takes a count of all exponents. Begins with the highest window that holds
// the largest exponent, moved up to the lowest exponent in it. A lower window loses what lies above
// it: once that is no less than what the best window so far lacks, in most rows at once, no window
// below is better.
int ChooseAmongHighest(const BFloat16* values, int64_t count) {
  constexpr int kMostWindows = 4;
  const int largest = LargestExponent(values, count);
  int base = std::clamp(largest - kBf12Window + 1, 0, kBf12MaxBase);
  Window window = Examine(values, count, base, largest);
  int best = std::min(window.lowest, kBf12MaxBase);
  int64_t fewest = window.below_base;
  for (int tried = 1; tried < kMostWindows; ++tried) {
    const int64_t above = count - window.below_top;
    if (above >= fewest || base == 0) return best;
    --base;
    window = Examine(values, count, base, base + kBf12Window - 1);
    if (above + window.below_base >= fewest) continue;
    fewest = above + window.below_base;
    best = base;
  }
  return count - window.below_top >= fewest ? best : -1;
}

int64_t FindEscapes(const BFloat16* HWY_RESTRICT values, int64_t count, uint8_t base,
                    uint16_t* HWY_RESTRICT places) {
  const Tag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const Vector first = hn::Set(d, Least(base));
  const Vector far = hn::Set(d, static_cast<uint16_t>(-Least(kBf12Window)));
  int64_t found = 0;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const Vector distance = hn::Sub(Magnitudes(values + i), first);  // wraps round below the base
    const auto outside = hn::Ne(hn::And(distance, far), hn::Zero(d));
    if (HWY_LIKELY(hn::AllFalse(d, outside))) continue;
    const Vector here = hn::Iota(d, static_cast<uint16_t>(i));
    found += static_cast<int64_t>(hn::CompressStore(here, outside, d, places + found));
  }
  for (; i < count; ++i) {
    const auto distance = static_cast<uint16_t>((values[i] & kNoSign) - Least(base));
    if (distance >= Least(kBf12Window)) places[found++] = static_cast<uint16_t>(i);
  }
  return found;
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace moed::backend
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moed::backend {
namespace {

HWY_EXPORT(ChooseAmongHighest);
HWY_EXPORT(FindEscapes);

constexpr int kExponents = 256;

// For rows of any kind: every base, by a histogram.
uint8_t ChooseByCounting(const BFloat16* values, int64_t count) {
  // Four histograms: increments of one counter wait for each other.
  std::array<std::array<uint32_t, kExponents>, 4> counts = {};
  for (int64_t i = 0; i < count; ++i) ++counts[i % 4][values[i] >> 7 & 0xff];
  std::array<uint32_t, kExponents> total;
  for (int e = 0; e < kExponents; ++e) {
    total[e] = counts[0][e] + counts[1][e] + counts[2][e] + counts[3][e];
  }
  uint32_t inside = 0;
  for (int e = 0; e < kBf12Window; ++e) inside += total[e];
  uint32_t most = inside;
  int best = 0;
  for (int base = 1; base <= kBf12MaxBase; ++base) {
    inside += total[base + kBf12Window - 1] - total[base - 1];
    if (inside >= most) {
      most = inside;
      best = base;
    }
  }
  return static_cast<uint8_t>(best);
}

}  // namespace

uint8_t ChooseBf12Base(const BFloat16* values, int64_t count) {
  const int base = HWY_DYNAMIC_DISPATCH(ChooseAmongHighest)(values, count);
  return base >= 0 ? static_cast<uint8_t>(base) : ChooseByCounting(values, count);
}

int64_t FindBf12Escapes(const BFloat16* values, int64_t count, uint8_t base, uint16_t* places) {
  return HWY_DYNAMIC_DISPATCH(FindEscapes)(values, count, base, places);
}

}  // namespace moed::backend
#endif
