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

}  // namespace moed::backend
