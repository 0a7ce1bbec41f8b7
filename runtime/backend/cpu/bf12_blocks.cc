#include "runtime/backend/cpu/bf12_blocks.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/backend/cpu/bf12_blocks.cc"
#include "hwy/foreach_target.h"
// Highway's own headers come after foreach_target.h.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace moed::backend {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// Words of a plane.
constexpr int64_t kWords = 32;

using Tag = hn::CappedTag<uint16_t, kWords>;
using Vector = hn::Vec<Tag>;

// Words of a block as values, or values as words, at `group` and word `w`.
HWY_INLINE Vector LoadWords(const std::byte* block, int plane, int64_t w) {
  return hn::LoadU(Tag(), reinterpret_cast<const uint16_t*>(block) + plane * kWords + w);
}
HWY_INLINE void StoreWords(Vector words, std::byte* block, int plane, int64_t w) {
  hn::StoreU(words, Tag(), reinterpret_cast<uint16_t*>(block) + plane * kWords + w);
}

// Values of group kGroup from its plane of bytes and the nibbles.
template <int kGroup>
HWY_INLINE Vector Decode(Vector bytes, Vector nibbles, Vector base) {
  const Tag d;
  const bool high = kGroup % 2 == 1;
  Vector code = nibbles;
  if (kGroup == 0) code = hn::ShiftLeft<7>(nibbles);
  if (kGroup == 1) code = hn::ShiftLeft<3>(nibbles);
  if (kGroup == 2) code = hn::ShiftRight<1>(nibbles);
  if (kGroup == 3) code = hn::ShiftRight<5>(nibbles);
  const Vector mantissa = high ? hn::ShiftRight<8>(bytes) : bytes;
  const Vector sign = high ? bytes : hn::ShiftLeft<8>(bytes);
  const Vector magnitude =
      hn::Or(hn::And(mantissa, hn::Set(d, 0x007f)), hn::And(code, hn::Set(d, 0x0780)));
  return hn::Or(hn::Add(magnitude, base), hn::And(sign, hn::Set(d, 0x8000)));
}

void DecodeBlocks(const std::byte* HWY_RESTRICT blocks, int64_t num_blocks, uint8_t base,
                  int64_t ahead, BFloat16* HWY_RESTRICT values) {
  const Tag d;
  const Vector exponent = hn::Set(d, static_cast<uint16_t>(base << 7));
  for (int64_t i = 0; i < num_blocks; ++i) {
    for (int64_t line = 0; line < kBf12BlockBytes; line += 64) {
      __builtin_prefetch(blocks + ahead + line, /*rw=*/0, /*locality=*/2);
    }
    for (int64_t w = 0; w < kWords; w += hn::Lanes(d)) {
      const Vector lower = LoadWords(blocks, 0, w);
      const Vector upper = LoadWords(blocks, 1, w);
      const Vector nibbles = LoadWords(blocks, 2, w);
      hn::StoreU(Decode<0>(lower, nibbles, exponent), d, values + w);
      hn::StoreU(Decode<1>(lower, nibbles, exponent), d, values + kWords + w);
      hn::StoreU(Decode<2>(upper, nibbles, exponent), d, values + 2 * kWords + w);
      hn::StoreU(Decode<3>(upper, nibbles, exponent), d, values + 3 * kWords + w);
    }
    blocks += kBf12BlockBytes;
    values += kBf12BlockValues;
  }
}

struct Encoded {
  Vector byte;
  Vector nibble;
  Vector escapes;  // all ones where the value is outside the window
};

HWY_INLINE Encoded Encode(const BFloat16* values, Vector base) {
  const Tag d;
  const Vector bits = hn::LoadU(d, values);
  const Vector exponent = hn::And(hn::ShiftRight<7>(bits), hn::Set(d, 0x00ff));
  const Vector distance = hn::Sub(exponent, base);  // wraps round below the base
  const auto inside = hn::Eq(hn::And(distance, hn::Set(d, 0xfff0)), hn::Zero(d));
  const Vector byte = hn::Or(hn::And(hn::ShiftRight<8>(bits), hn::Set(d, 0x0080)),
                             hn::And(bits, hn::Set(d, 0x007f)));
  return {hn::IfThenElseZero(inside, byte), hn::IfThenElseZero(inside, distance),
          hn::VecFromMask(d, hn::Not(inside))};
}

bool EncodeBlocks(const BFloat16* HWY_RESTRICT values, int64_t num_blocks, uint8_t base,
                  std::byte* HWY_RESTRICT blocks) {
  const Tag d;
  const Vector exponent = hn::Set(d, base);
  Vector escapes = hn::Zero(d);
  for (int64_t i = 0; i < num_blocks; ++i) {
    for (int64_t w = 0; w < kWords; w += hn::Lanes(d)) {
      const Encoded e0 = Encode(values + w, exponent);
      const Encoded e1 = Encode(values + kWords + w, exponent);
      const Encoded e2 = Encode(values + 2 * kWords + w, exponent);
      const Encoded e3 = Encode(values + 3 * kWords + w, exponent);
      StoreWords(hn::Or(e0.byte, hn::ShiftLeft<8>(e1.byte)), blocks, 0, w);
      StoreWords(hn::Or(e2.byte, hn::ShiftLeft<8>(e3.byte)), blocks, 1, w);
      const Vector low = hn::Or(e0.nibble, hn::ShiftLeft<4>(e1.nibble));
      const Vector high = hn::Or(e2.nibble, hn::ShiftLeft<4>(e3.nibble));
      StoreWords(hn::Or(low, hn::ShiftLeft<8>(high)), blocks, 2, w);
      escapes =
          hn::Or(escapes, hn::Or(hn::Or(e0.escapes, e1.escapes), hn::Or(e2.escapes, e3.escapes)));
    }
    values += kBf12BlockValues;
    blocks += kBf12BlockBytes;
  }
  return !hn::AllTrue(d, hn::Eq(escapes, hn::Zero(d)));
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace moed::backend
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moed::backend {

HWY_EXPORT(DecodeBlocks);
HWY_EXPORT(EncodeBlocks);

bool EncodeBf12Blocks(const BFloat16* values, int64_t num_blocks, uint8_t base, std::byte* blocks) {
  return HWY_DYNAMIC_DISPATCH(EncodeBlocks)(values, num_blocks, base, blocks);
}

void DecodeBf12Blocks(const std::byte* blocks, int64_t num_blocks, uint8_t base, int64_t ahead,
                      BFloat16* values) {
  HWY_DYNAMIC_DISPATCH(DecodeBlocks)(blocks, num_blocks, base, ahead, values);
}

}  // namespace moed::backend
#endif
