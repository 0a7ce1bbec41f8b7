// Two bf12 values at once in the fewest instructions (backend/bf12_bits.h says why these are
// right): a byte permute, a mask for every two pairs, a shift with a sum, and a select. Where masks
// and selects are not spelled out, the compiler takes up to seven. Registers only; any thread.
#pragma once

#include <cstdint>

#include "runtime/backend/bf12_bits.h"

namespace moed::backend {

template <int kGroup>
__device__ __forceinline__ uint32_t Bf12ExponentsOf(uint32_t nibbles, uint32_t base_pair) {
  uint32_t codes;
  asm("and.b32 %0, %1, %2;" : "=r"(codes) : "r"(nibbles), "n"(Bf12CodeMask(kGroup)));
  return Bf12Exponents<kGroup>(codes, base_pair);
}

// SelectBf12Bits.
__device__ __forceinline__ uint32_t SelectBf12BitsAtOnce(uint32_t bytes, uint32_t exponents) {
  uint32_t pair;
  asm("lop3.b32 %0, %1, %2, %3, 0xe4;"  // of the first where the mask has ones, else the second
      : "=r"(pair)
      : "r"(bytes), "r"(exponents), "n"(kBf12SignsAndMantissas));
  return pair;
}

// As DecodeBf12Pair.
template <int kGroup>
__device__ __forceinline__ uint32_t PermuteBf12Pair(uint32_t bytes, uint32_t nibbles,
                                                    uint32_t base_pair) {
  return SelectBf12BitsAtOnce(__byte_perm(bytes, 0, kGroup % 2 == 0 ? 0x2200 : 0x3311),
                              Bf12ExponentsOf<kGroup>(nibbles, base_pair));
}

// Two neighbouring columns of two groups, each a pair of values of an even and an odd row.
struct Bf12ColumnPairs {
  uint32_t first[2];  // of either group
  uint32_t second[2];
};

// `even`, `odd`: words w and w + 1 of plane `plane` of either row; `..._nibbles`: of the last;
// `bases`: of both rows.
__device__ __forceinline__ Bf12ColumnPairs PermuteBf12Columns(uint32_t even, uint32_t odd,
                                                              uint32_t even_nibbles,
                                                              uint32_t odd_nibbles, int plane,
                                                              uint32_t bases) {
  // The plane's nibbles of word w in the lower byte of each half, of word w + 1 in the upper one:
  // placed as those of groups 0 to 3 are.
  const uint32_t nibbles = __byte_perm(even_nibbles, odd_nibbles, plane == 0 ? 0x6420 : 0x7531);
  const uint32_t first_0 = __byte_perm(even, odd, 0x4400);
  const uint32_t first_1 = __byte_perm(even, odd, 0x5511);
  const uint32_t second_0 = __byte_perm(even, odd, 0x6622);
  const uint32_t second_1 = __byte_perm(even, odd, 0x7733);
  return {{SelectBf12BitsAtOnce(first_0, Bf12ExponentsOf<0>(nibbles, bases)),
           SelectBf12BitsAtOnce(first_1, Bf12ExponentsOf<1>(nibbles, bases))},
          {SelectBf12BitsAtOnce(second_0, Bf12ExponentsOf<2>(nibbles, bases)),
           SelectBf12BitsAtOnce(second_1, Bf12ExponentsOf<3>(nibbles, bases))}};
}

}  // namespace moed::backend
