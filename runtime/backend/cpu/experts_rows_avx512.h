// Rows of experts' neurons as vectors of bf16, in either format: for the kernels of few rows that
// need AVX512-BF16, and only for their files, which set the target. Any thread.
#pragma once

#include <immintrin.h>

#include <bit>
#include <cstddef>
#include <cstdint>

#include "runtime/backend/cpu/bf12_blocks.h"
#include "runtime/backend/cpu/experts_kernels.h"
#include "runtime/backend/cpu/experts_neurons.h"

// Compiled for its own target; the rest of the program runs where these instructions do not exist.
#define MOED_AVX512_BF16_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"
#define MOED_AVX512_BF16 __attribute__((target(MOED_AVX512_BF16_TARGET), always_inline)) inline
#define MOED_AVX512_BF16_ENTRY __attribute__((target(MOED_AVX512_BF16_TARGET)))

namespace moed::backend {

// bf16 values of a vector, which is a cache line.
constexpr int64_t kBlock = 32;
static_assert(kOrderedSums % kBlock == 0);

// Where a column's sum stands: of 32, those of even columns come first.
constexpr int64_t SumIndex(int64_t column) {
  return column / kBlock * kBlock + column % 2 * (kBlock / 2) + column % kBlock / 2;
}

// Columns in groups of 32, as many as a block of bf12 has.
constexpr int64_t kSpan = kBf12BlockValues;
constexpr int kSpanGroups = kSpan / kBlock;

// Of the groups of a span from column i on, as many as there are.
inline int GroupsAt(int64_t i, int64_t width) {
  return static_cast<int>(std::min(kSpan, width - i) / kBlock);
}

// A row of either format. Load(i), i a multiple of kSpan, is what Decode(span, group) makes 32
// values from, those from i + 32 * group on, group a constant after unrolling; they are to be
// multiplied by Scale(), a power of two.
struct Bf16Row {
  static constexpr int64_t kSpanBytes = 2 * kSpan;
  using Span = const std::byte*;
  const std::byte* values;

  static constexpr float Scale() { return 1.0f; }
  MOED_AVX512_BF16 Span Load(int64_t i) const { return values + 2 * i; }
  MOED_AVX512_BF16 __m512i Decode(Span span, int group) const {
    return _mm512_loadu_si512(span + 2 * kBlock * group);
  }
};

// A block of bf12, read once for its four groups: the compiler reads it anew after every store.
struct Bf12Block {
  __m512i bytes[2];
  __m512i nibbles;

  MOED_AVX512_BF16 static Bf12Block Load(const std::byte* block) {
    return {{_mm512_loadu_si512(block), _mm512_loadu_si512(block + 64)},
            _mm512_loadu_si512(block + 128)};
  }
  // Nibble `group` of each word to where the exponent stands in a bf16.
  MOED_AVX512_BF16 __m512i Exponents(int group) const {
    if (group == 0) return _mm512_slli_epi16(nibbles, 7);
    if (group == 1) return _mm512_slli_epi16(nibbles, 3);
    if (group == 2) return _mm512_srli_epi16(nibbles, 1);
    return _mm512_srli_epi16(nibbles, 5);
  }
};

struct Bf12Row {
  static constexpr int64_t kSpanBytes = kBf12BlockBytes;
  using Span = Bf12Block;
  const std::byte* blocks;
  BFloat16 base;  // the exponent, where it stands in a bf16

  static constexpr float Scale() { return 1.0f; }
  MOED_AVX512_BF16 Span Load(int64_t i) const { return Span::Load(blocks + i / 2 * 3); }
  MOED_AVX512_BF16 __m512i Decode(const Span& span, int group) const {
    const __m512i bytes = span.bytes[group / 2];
    const bool high = group % 2 == 1;
    const __m512i mantissa = high ? _mm512_srli_epi16(bytes, 8) : bytes;
    const __m512i sign = high ? bytes : _mm512_slli_epi16(bytes, 8);
    // Bits 0-6 from the mantissa, 7-10 from the nibble; then the base; then bit 15 from the sign.
    constexpr int kSelect = 0xca;  // a ? b : c
    constexpr int kOrAnd = 0xf8;   // a | (b & c)
    const __m512i magnitude = _mm512_ternarylogic_epi32(_mm512_set1_epi16(0x007f), mantissa,
                                                        span.Exponents(group), kSelect);
    const __m512i based = _mm512_add_epi16(_mm512_and_si512(magnitude, _mm512_set1_epi16(0x07ff)),
                                           _mm512_set1_epi16(static_cast<int16_t>(base)));
    return _mm512_ternarylogic_epi32(based, sign, _mm512_set1_epi16(static_cast<int16_t>(0x8000)),
                                     kOrAnd);
  }
};

// A block whose nibbles have the upper half of the exponent for neighbours, so that both are put in
// place at once.
struct ScaledBf12Block {
  __m512i bytes[2];
  __m512i even;  // nibbles 0 and 2 of each word, the others the upper half
  __m512i odd;   // nibbles 1 and 3

  // `upper`: four bits, below 8.
  MOED_AVX512_BF16 static ScaledBf12Block Load(const std::byte* block, int upper) {
    const __m512i nibbles = _mm512_loadu_si512(block + 128);
    constexpr int kSelect = 0xca;  // a ? b : c
    const __m512i low = _mm512_set1_epi8(0x0f);
    const __m512i all = _mm512_set1_epi8(static_cast<int8_t>(upper * 0x11));
    return {{_mm512_loadu_si512(block), _mm512_loadu_si512(block + 64)},
            _mm512_ternarylogic_epi32(low, nibbles, all, kSelect),
            _mm512_ternarylogic_epi32(low, all, nibbles, kSelect)};
  }
  // The exponents of group `group` where they stand in a bf16; the other bits mean nothing.
  MOED_AVX512_BF16 __m512i Exponents(int group) const {
    if (group == 0) return _mm512_slli_epi16(even, 7);
    if (group == 1) return _mm512_slli_epi16(odd, 3);
    if (group == 2) return _mm512_srli_epi16(even, 1);
    return _mm512_ror_epi32(odd, 5);  // a word's last nibble beside the other's first
  }
};

// With another base for the row's own, whose last four bits are zero so that nothing need be added,
// in 14 instructions for 128 values instead of 24. The same result to the last bit, since the sums
// are floats.
struct ScaledBf12Row {
  static constexpr int64_t kSpanBytes = kBf12BlockBytes;
  static constexpr int kBase = 112;
  // Of bases that may be replaced: far from where scaled sums and factors could overflow or lose
  // bits, which no row of a trained model comes near.
  static constexpr int kLeastBase = kBase - 60;
  static constexpr int kMostBase = kBase + 60;
  using Span = ScaledBf12Block;
  const std::byte* blocks;
  int base;

  float Scale() const { return std::bit_cast<float>((base - kBase + 127) << 23); }
  MOED_AVX512_BF16 Span Load(int64_t i) const { return Span::Load(blocks + i / 2 * 3, kBase >> 4); }
  MOED_AVX512_BF16 __m512i Decode(const Span& span, int group) const {
    // A word's byte twice, so that its sign and its mantissa both stand where they shall.
    const __m512i twice =
        _mm512_shuffle_epi8(span.bytes[group / 2], group % 2 == 1 ? Odd() : Even());
    constexpr int kSelect = 0xca;  // a ? b : c
    return _mm512_ternarylogic_epi32(_mm512_set1_epi16(static_cast<int16_t>(0x807f)), twice,
                                     span.Exponents(group), kSelect);
  }
  MOED_AVX512_BF16 static __m512i Even() {
    return _mm512_set4_epi32(0x0e0e0c0c, 0x0a0a0808, 0x06060404, 0x02020000);
  }
  MOED_AVX512_BF16 static __m512i Odd() {
    return _mm512_set4_epi32(0x0f0f0d0d, 0x0b0b0909, 0x07070505, 0x03030101);
  }
};

// Neurons whose rows may all be scaled.
struct ScaledNeurons {
  const Bf12Neurons& neurons;

  const std::byte* Next(int64_t i, int64_t at_once) const { return neurons.Next(i, at_once); }
  template <class Function>
  void ForEachEscape(int64_t i, const Function& function) const {
    neurons.ForEachEscape(i, function);
  }
};

MOED_AVX512_BF16 Bf16Row RowAt(const Bf16Neurons& neurons, int64_t i, int part) {
  return {neurons.Row(i, part)};
}
MOED_AVX512_BF16 Bf12Row RowAt(const Bf12Neurons& neurons, int64_t i, int part) {
  return {neurons.Row(i, part), neurons.Placeholder(i, part)};
}
MOED_AVX512_BF16 ScaledBf12Row RowAt(const ScaledNeurons& scaled, int64_t i, int part) {
  return {scaled.neurons.Row(i, part), scaled.neurons.Base(i, part)};
}

}  // namespace moed::backend
