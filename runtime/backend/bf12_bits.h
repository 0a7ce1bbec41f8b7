// The bit arithmetic of bf12 blocks (cpu/bf12_blocks.h has their layout) on two values at once, as
// 32-bit words of a GPU hold them. constexpr, so that kernels and tests run the same code.
#pragma once

#include <cstdint>

namespace moed::backend {

// Values of a block, and its bytes: two planes of 32 words of bytes, one of nibbles.
inline constexpr int kBf12PairBlockValues = 128;
inline constexpr int kBf12PairBlockBytes = 192;
inline constexpr int kBf12PlaneBytes = 64;

// A row's base exponent where it stands in both bf16 of a pair.
constexpr uint32_t Bf12BasePair(uint32_t base) { return base * 0x00800080u; }

// Values 32 * kGroup + w and the next of a block, w even. `bytes`: words w and w + 1 of plane
// kGroup / 2; `nibbles`: of the last plane. No sum carries out of its half: base and code together
// are at most 255.
template <int kGroup>
constexpr uint32_t DecodeBf12Pair(uint32_t bytes, uint32_t nibbles, uint32_t base_pair) {
  static_assert(kGroup >= 0 && kGroup < 4);
  constexpr bool kHigh = kGroup % 2 == 1;
  const uint32_t mantissa = kHigh ? bytes >> 8 : bytes;
  const uint32_t sign = kHigh ? bytes : bytes << 8;
  // Nibble kGroup of each word, moved to where the exponent stands.
  const uint32_t code = kGroup == 0   ? nibbles << 7
                        : kGroup == 1 ? nibbles << 3
                        : kGroup == 2 ? nibbles >> 1
                                      : nibbles >> 5;
  return (((mantissa & 0x007f007fu) | (code & 0x07800780u)) + base_pair) | (sign & 0x80008000u);
}

// The same for machines that permute bytes, shift and add, and select bits in one instruction each:
// SelectBf12Bits(each value's byte twice in its half, Bf12Exponents<kGroup>(nibbles &
// Bf12CodeMask(kGroup), base_pair)). Groups 0 and 2, and 1 and 3, share the masked nibbles.
constexpr uint32_t Bf12CodeMask(int group) { return group % 2 == 0 ? 0x0f0f0f0fu : 0xf0f0f0f0u; }

// Right where exponents stand. The other nibble lands in bits of sign and mantissa only, and no
// sum carries into or out of the exponents.
template <int kGroup>
constexpr uint32_t Bf12Exponents(uint32_t codes, uint32_t base_pair) {
  static_assert(kGroup >= 0 && kGroup < 4);
  return kGroup == 0   ? codes * 128 + base_pair
         : kGroup == 1 ? codes * 8 + base_pair
         : kGroup == 2 ? (codes >> 1) + base_pair
                       : (codes >> 5) + base_pair;
}

inline constexpr uint32_t kBf12SignsAndMantissas = 0x807f807f;
constexpr uint32_t SelectBf12Bits(uint32_t signs_and_mantissas, uint32_t exponents) {
  return (signs_and_mantissas & kBf12SignsAndMantissas) | (exponents & ~kBf12SignsAndMantissas);
}

}  // namespace moed::backend
