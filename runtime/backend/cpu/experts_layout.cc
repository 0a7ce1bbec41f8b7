#include "runtime/backend/cpu/experts_layout.h"

#include <algorithm>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/backend/cpu/experts_layout.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace moed::backend {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// Values in a cache line; a tile is 32 lines of the source and 32 of the target.
constexpr int64_t kLine = 32;

// Streaming spares the read for ownership, a third of what a copy moves; it needs aligned targets.
template <StoreKind kStore>
HWY_INLINE void StoreLine(const uint16_t* HWY_RESTRICT line, uint16_t* HWY_RESTRICT target) {
  const hn::CappedTag<uint16_t, kLine> d;
  const bool stream = kStore == StoreKind::kStreamed &&
                      reinterpret_cast<uintptr_t>(target) % (kLine * sizeof(uint16_t)) == 0;
  for (int64_t i = 0; i < kLine; i += hn::Lanes(d)) {
    const auto values = hn::LoadU(d, line + i);
    if (stream) {
      hn::Stream(values, d, target + i);
    } else {
      hn::StoreU(values, d, target + i);
    }
  }
}

void Copy(const uint16_t* source, int64_t count, uint16_t* target) {
  const int64_t whole = count / kLine * kLine;
  for (int64_t i = 0; i < whole; i += kLine)
    StoreLine<StoreKind::kStreamed>(source + i, target + i);
  std::copy(source + whole, source + count, target + whole);
}

// `load(i)` gives the floats at i, a vector of them.
template <class Load>
HWY_INLINE void ConvertWhole(const Load& load, int64_t count, BFloat16* target) {
  const hn::ScalableTag<float> d32;
  const hn::RebindToUnsigned<decltype(d32)> du32;
  const hn::Rebind<uint16_t, decltype(d32)> d16;
  const auto one = hn::Set(du32, 1);
  for (int64_t i = 0; i < count; i += hn::Lanes(d32)) {
    const auto value = load(i);
    const auto bits = hn::BitCast(du32, value);
    const auto high = hn::ShiftRight<16>(bits);
    const auto half = hn::Add(hn::Set(du32, 0x7fff), hn::And(high, one));
    const auto rounded = hn::ShiftRight<16>(hn::Add(bits, half));
    const auto quiet = hn::Or(high, hn::Set(du32, 0x40));
    const auto result = hn::IfThenElse(hn::RebindMask(du32, hn::IsNaN(value)), quiet, rounded);
    hn::StoreU(hn::TruncateTo(d16, result), d16, target + i);
  }
}

void ConvertFloats(const float* source, int64_t count, BFloat16* target) {
  const hn::ScalableTag<float> d;
  const int64_t whole = count / hn::Lanes(d) * hn::Lanes(d);
  ConvertWhole([&](int64_t i) HWY_ATTR { return hn::LoadU(d, source + i); }, whole, target);
  for (int64_t i = whole; i < count; ++i) target[i] = ToBFloat16(source[i]);
}

void ConvertHalves(const uint16_t* source, int64_t count, BFloat16* target) {
  const hn::ScalableTag<float> d;
  const hn::Rebind<hwy::float16_t, decltype(d)> d16;
  const hn::RebindToUnsigned<decltype(d16)> du16;
  const int64_t whole = count / hn::Lanes(d) * hn::Lanes(d);
  const auto load = [&](int64_t i) HWY_ATTR {
    return hn::PromoteTo(d, hn::BitCast(d16, hn::LoadU(du16, source + i)));
  };
  ConvertWhole(load, whole, target);
  for (int64_t i = whole; i < count; ++i) target[i] = ToBFloat16(HalfToFloat(source[i]));
}

// Interleaving rows i and i + 4 rotates the six bits of (row, column) by one place; three rounds
// swap row and column.
HWY_INLINE void Transpose8x8(const uint16_t* source, int64_t source_stride, uint16_t* target,
                             int64_t target_stride) {
  const hn::CappedTag<uint16_t, 8> d;
  hn::Vec<decltype(d)> rows[8];
  hn::Vec<decltype(d)> shuffled[8];
  for (int i = 0; i < 8; ++i) rows[i] = hn::LoadU(d, source + i * source_stride);
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 4; ++i) {
      shuffled[2 * i] = hn::InterleaveLower(d, rows[i], rows[i + 4]);
      shuffled[2 * i + 1] = hn::InterleaveUpper(d, rows[i], rows[i + 4]);
    }
    for (int i = 0; i < 8; ++i) rows[i] = shuffled[i];
  }
  for (int i = 0; i < 8; ++i) hn::StoreU(rows[i], d, target + i * target_stride);
}

// Both strides are often multiples of 4 KiB, so that the lines of a column share one set of the L1
// cache: each source line is read once, each target line written once.
template <StoreKind kStore>
HWY_INLINE void TransposeTile(const uint16_t* source, int64_t source_stride, uint16_t* target,
                              int64_t target_stride) {
  HWY_ALIGN uint16_t tile[kLine * kLine];
  for (int64_t r = 0; r < kLine; r += 8) {
    for (int64_t c = 0; c < kLine; c += 8) {
      Transpose8x8(source + r * source_stride + c, source_stride, tile + c * kLine + r, kLine);
    }
  }
  for (int64_t c = 0; c < kLine; ++c)
    StoreLine<kStore>(tile + c * kLine, target + c * target_stride);
}

void TransposeEdge(const uint16_t* source, int64_t source_stride, int64_t rows, int64_t columns,
                   uint16_t* target, int64_t target_stride) {
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t r = 0; r < rows; ++r)
      target[c * target_stride + r] = source[r * source_stride + c];
  }
}

template <StoreKind kStore>
void Transpose(const uint16_t* source, int64_t source_stride, int64_t rows, int64_t columns,
               uint16_t* target, int64_t target_stride) {
  const int64_t whole_rows = rows / kLine * kLine;
  const int64_t whole_columns = columns / kLine * kLine;
  for (int64_t c = 0; c < whole_columns; c += kLine) {
    for (int64_t r = 0; r < whole_rows; r += kLine) {
      TransposeTile<kStore>(source + r * source_stride + c, source_stride,
                            target + c * target_stride + r, target_stride);
    }
  }
  TransposeEdge(source + whole_columns, source_stride, rows, columns - whole_columns,
                target + whole_columns * target_stride, target_stride);
  TransposeEdge(source + whole_rows * source_stride, source_stride, rows - whole_rows,
                whole_columns, target + whole_rows, target_stride);
}

void TransposeCached(const uint16_t* source, int64_t source_stride, int64_t rows, int64_t columns,
                     uint16_t* target, int64_t target_stride) {
  Transpose<StoreKind::kCached>(source, source_stride, rows, columns, target, target_stride);
}
void TransposeStreamed(const uint16_t* source, int64_t source_stride, int64_t rows, int64_t columns,
                       uint16_t* target, int64_t target_stride) {
  Transpose<StoreKind::kStreamed>(source, source_stride, rows, columns, target, target_stride);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace moed::backend
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moed::backend {

HWY_EXPORT(Copy);
HWY_EXPORT(ConvertHalves);
HWY_EXPORT(ConvertFloats);
HWY_EXPORT(TransposeCached);
HWY_EXPORT(TransposeStreamed);

void CopyValues(const uint16_t* source, int64_t count, uint16_t* target) {
  HWY_DYNAMIC_DISPATCH(Copy)(source, count, target);
}

void HalvesToBFloat16(const uint16_t* source, int64_t count, BFloat16* target) {
  HWY_DYNAMIC_DISPATCH(ConvertHalves)(source, count, target);
}

void FloatsToBFloat16(const float* source, int64_t count, BFloat16* target) {
  HWY_DYNAMIC_DISPATCH(ConvertFloats)(source, count, target);
}

void TransposeValues(const uint16_t* source, int64_t source_stride, int64_t rows, int64_t columns,
                     uint16_t* target, int64_t target_stride, StoreKind store) {
  const auto transpose = store == StoreKind::kStreamed ? HWY_DYNAMIC_DISPATCH(TransposeStreamed)
                                                       : HWY_DYNAMIC_DISPATCH(TransposeCached);
  transpose(source, source_stride, rows, columns, target, target_stride);
}

}  // namespace moed::backend
#endif
