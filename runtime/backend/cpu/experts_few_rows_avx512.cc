#include "runtime/backend/cpu/experts_avx512.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "runtime/backend/cpu/bf12_blocks.h"
#include "runtime/backend/cpu/experts_activation.h"
#include "runtime/backend/cpu/experts_neurons.h"

// GCC 12's headers make undefined vectors by reading them, and warn where they are inlined.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

// Compiled for its own target; the rest of the program runs where these instructions do not exist.
#define MOED_AVX512_BF16 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"), always_inline)) inline
#define MOED_AVX512_BF16_ENTRY \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))

namespace moed::backend {
namespace {

// bf16 values of a vector, which is a cache line.
constexpr int64_t kBlock = 32;
// Neurons whose down rows are added in one pass over y.
constexpr int kNeuronsAtOnce = 4;

MOED_AVX512_BF16 __m512bh AsBf16(__m512i values) { return reinterpret_cast<__m512bh>(values); }

// Fetches a line into the L2 cache (see experts_few_rows_portable.cc).
MOED_AVX512_BF16 void PrefetchLine(const std::byte* line) {
  __builtin_prefetch(line, /*rw=*/0, /*locality=*/2);
}

// A row of either format. Load(i, group) gives 32 values from i + 32 * group on, i a multiple of
// kStep, group a constant after unrolling; Prefetch(i) fetches step i of the row `ahead` bytes on.
struct Bf16Row {
  static constexpr int64_t kStep = kBlock;
  const std::byte* values;
  int64_t ahead;

  MOED_AVX512_BF16 void Prefetch(int64_t i) const { PrefetchLine(values + 2 * i + ahead); }
  MOED_AVX512_BF16 __m512i Load(int64_t i, int64_t) const {
    return _mm512_loadu_si512(values + 2 * i);
  }
};

struct Bf12Row {
  static constexpr int64_t kStep = kBf12BlockValues;
  const std::byte* blocks;
  int64_t ahead;
  BFloat16 base;  // the exponent, where it stands in a bf16

  MOED_AVX512_BF16 void Prefetch(int64_t i) const {
    const std::byte* block = blocks + i / 2 * 3 + ahead;
    for (int64_t line = 0; line < kBf12BlockBytes; line += 64) PrefetchLine(block + line);
  }
  MOED_AVX512_BF16 __m512i Load(int64_t i, int64_t group) const {
    const std::byte* block = blocks + i / 2 * 3;
    const __m512i bytes = _mm512_loadu_si512(block + group / 2 * 64);
    const __m512i nibbles = _mm512_loadu_si512(block + 128);
    const bool high = group % 2 == 1;
    const __m512i mantissa = high ? _mm512_srli_epi16(bytes, 8) : bytes;
    const __m512i sign = high ? bytes : _mm512_slli_epi16(bytes, 8);
    // Bits 0-6 from the mantissa, 7-10 from the nibble; then the base; then bit 15 from the sign.
    constexpr int kSelect = 0xca;  // a ? b : c
    constexpr int kOrAnd = 0xf8;   // a | (b & c)
    const __m512i magnitude = _mm512_ternarylogic_epi32(_mm512_set1_epi16(0x007f), mantissa,
                                                        MoveNibble(group, nibbles), kSelect);
    const __m512i based = _mm512_add_epi16(_mm512_and_si512(magnitude, _mm512_set1_epi16(0x07ff)),
                                           _mm512_set1_epi16(static_cast<int16_t>(base)));
    return _mm512_ternarylogic_epi32(based, sign, _mm512_set1_epi16(static_cast<int16_t>(0x8000)),
                                     kOrAnd);
  }
  // Nibble `group` of each word to where the exponent stands in a bf16.
  MOED_AVX512_BF16 static __m512i MoveNibble(int64_t group, __m512i words) {
    if (group == 0) return _mm512_slli_epi16(words, 7);
    if (group == 1) return _mm512_slli_epi16(words, 3);
    if (group == 2) return _mm512_srli_epi16(words, 1);
    return _mm512_srli_epi16(words, 5);
  }
};

MOED_AVX512_BF16 Bf16Row RowAt(const Bf16Neurons& neurons, int64_t i, int part) {
  return {neurons.Row(i, part), kNeuronsAtOnce * neurons.neuron_bytes()};
}
MOED_AVX512_BF16 Bf12Row RowAt(const Bf12Neurons& neurons, int64_t i, int part) {
  return {neurons.Row(i, part), kNeuronsAtOnce * neurons.neuron_bytes(),
          neurons.Placeholder(i, part)};
}

// gate[r], up[r] = the products of a neuron's two rows with kRows rows of x.
template <int kRows, class Row>
MOED_AVX512_BF16 void MultiplyNeuron(const Row& gate_row, const Row& up_row, const FewRows& rows,
                                     float* gate, float* up) {
  __m512 gate_sums[kRows];
  __m512 up_sums[kRows];
  for (int r = 0; r < kRows; ++r) gate_sums[r] = up_sums[r] = _mm512_setzero_ps();
  for (int64_t i = 0; i < rows.width; i += Row::kStep) {
    gate_row.Prefetch(i);
    up_row.Prefetch(i);
#pragma GCC unroll 4
    for (int64_t group = 0; group < Row::kStep / kBlock; ++group) {
      const __m512bh g = AsBf16(gate_row.Load(i, group));
      const __m512bh u = AsBf16(up_row.Load(i, group));
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m512bh x = AsBf16(_mm512_loadu_si512(rows.x[r] + i + group * kBlock));
        gate_sums[r] = _mm512_dpbf16_ps(gate_sums[r], g, x);
        up_sums[r] = _mm512_dpbf16_ps(up_sums[r], u, x);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    gate[r] = _mm512_reduce_add_ps(gate_sums[r]);
    up[r] = _mm512_reduce_add_ps(up_sums[r]);
  }
}

// y[r] += sum over kNeurons of act[n * kRows + r] * their down rows. Within 32 values y holds those
// at even places, then those at odd ones: so a vector of bf16 widens without shuffles.
template <int kNeurons, int kRows, class Row>
MOED_AVX512_BF16 void AddDownRows(const Row* down, const float* act, const FewRows& rows) {
  const __m512i upper_half = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  for (int64_t i = 0; i < rows.width; i += Row::kStep) {
    for (int n = 0; n < kNeurons; ++n) down[n].Prefetch(i);
#pragma GCC unroll 4
    for (int64_t group = 0; group < Row::kStep / kBlock; ++group) {
      __m512 even[kNeurons];
      __m512 odd[kNeurons];
#pragma GCC unroll 4
      for (int n = 0; n < kNeurons; ++n) {
        const __m512i both = down[n].Load(i, group);
        even[n] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
        odd[n] = _mm512_castsi512_ps(_mm512_and_si512(both, upper_half));
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        float* target = rows.y + r * rows.width + i + group * kBlock;
        __m512 even_sum = _mm512_loadu_ps(target);
        __m512 odd_sum = _mm512_loadu_ps(target + 16);
#pragma GCC unroll 4
        for (int n = 0; n < kNeurons; ++n) {
          const __m512 factor = _mm512_set1_ps(act[n * kRows + r]);
          even_sum = _mm512_fmadd_ps(factor, even[n], even_sum);
          odd_sum = _mm512_fmadd_ps(factor, odd[n], odd_sum);
        }
        _mm512_storeu_ps(target, even_sum);
        _mm512_storeu_ps(target + 16, odd_sum);
      }
    }
  }
}

// y += the part of neurons [first, first + kNeurons).
template <int kNeurons, int kRows, class Neurons>
MOED_AVX512_BF16 void AddNeurons(const Neurons& neurons, int64_t first, const FewRows& rows) {
  float gate[kNeurons * kRows];
  float up[kNeurons * kRows];
  BFloat16 rounded[kNeurons * kRows];
  float act[kNeurons * kRows];
  decltype(RowAt(neurons, first, 0)) down[kNeurons];
  for (int n = 0; n < kNeurons; ++n) {
    float* const sums[2] = {gate + n * kRows, up + n * kRows};
    MultiplyNeuron<kRows>(RowAt(neurons, first + n, 0), RowAt(neurons, first + n, 1), rows, sums[0],
                          sums[1]);
    neurons.ForEachEscape(first + n, [&](int part, int64_t column, float delta) {
      if (part == 2) return;
      for (int r = 0; r < kRows; ++r) sums[part][r] += delta * ToFloat(rows.x[r][column]);
    });
    down[n] = RowAt(neurons, first + n, 2);
  }
  ActivateSwiGlu(gate, up, kNeurons * kRows, rounded);
  for (int i = 0; i < kNeurons * kRows; ++i) act[i] = ToFloat(rounded[i]);
  AddDownRows<kNeurons, kRows>(down, act, rows);
  for (int n = 0; n < kNeurons; ++n) {
    neurons.ForEachEscape(first + n, [&](int part, int64_t column, float delta) {
      if (part != 2) return;
      const int64_t index = column / kBlock * kBlock + column % 2 * 16 + column % kBlock / 2;
      for (int r = 0; r < kRows; ++r) rows.y[r * rows.width + index] += delta * act[n * kRows + r];
    });
  }
}

// From even and odd places to the natural order, 32 values at a time.
MOED_AVX512_BF16 void InterleaveHalves(float* y, int64_t count) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  for (float* block = y; block < y + count; block += kBlock) {
    const __m512 even = _mm512_loadu_ps(block);
    const __m512 odd = _mm512_loadu_ps(block + 16);
    _mm512_storeu_ps(block, _mm512_permutex2var_ps(even, low, odd));
    _mm512_storeu_ps(block + 16, _mm512_permutex2var_ps(even, high, odd));
  }
}

template <int kRows, class Neurons>
MOED_AVX512_BF16_ENTRY void AddAllNeurons(const Neurons& neurons, const FewRows& rows) {
  std::memset(rows.y, 0, kRows * rows.width * sizeof(float));
  int64_t n = 0;
  for (; n + kNeuronsAtOnce <= neurons.count(); n += kNeuronsAtOnce) {
    AddNeurons<kNeuronsAtOnce, kRows>(neurons, n, rows);
  }
  for (; n < neurons.count(); ++n) AddNeurons<1, kRows>(neurons, n, rows);
  InterleaveHalves(rows.y, kRows * rows.width);
}

template <class Neurons>
void ComputeFewRows(const Neurons& neurons, const FewRows& rows) {
  using Function = void (*)(const Neurons&, const FewRows&);
  static constexpr Function kFunctions[kAvx512FewRows] = {
      AddAllNeurons<1, Neurons>, AddAllNeurons<2, Neurons>, AddAllNeurons<3, Neurons>,
      AddAllNeurons<4, Neurons>, AddAllNeurons<5, Neurons>, AddAllNeurons<6, Neurons>,
      AddAllNeurons<7, Neurons>, AddAllNeurons<8, Neurons>};
  kFunctions[rows.num - 1](neurons, rows);
}

}  // namespace

void FewRowsAvx512(const ExpertNeurons& neurons, const FewRows& rows) {
  if (neurons.format.kind() == ExpertFormatKind::kBF12) {
    ComputeFewRows(Bf12Neurons(neurons), rows);
  } else {
    ComputeFewRows(Bf16Neurons(neurons), rows);
  }
}

}  // namespace moed::backend

#else

namespace moed::backend {

// Never called: cpu_features.h reports no AVX-512 here.
void FewRowsAvx512(const ExpertNeurons&, const FewRows&) {}

}  // namespace moed::backend

#endif
